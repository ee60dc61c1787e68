"""Parts of a model, whatever wraps it: the transformers model itself, its text part, its layers, its experts."""

from typing import TYPE_CHECKING, cast

import torch

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def base_of(model: torch.nn.Module) -> "PreTrainedModel":
    """The transformers model inside an engine (DeepSpeed, DDP) and inside PEFT's wrapper."""
    inner = getattr(model, "module", model)
    unwrapped = getattr(inner, "get_base_model", lambda: inner)
    return cast("PreTrainedModel", unwrapped())


def text_config(model: torch.nn.Module) -> "PretrainedConfig":
    """The config of the model's language part."""
    return base_of(model).config.get_text_config()


def max_positions(config: "PretrainedConfig") -> int | None:
    """The longest text in tokens that a model can hold, by its config. None: any.

    MPT and DBRX call it `max_seq_len`. With `dynamic` rope a text may be `factor` times as long as `max_position_embeddings`,
    but not with an `alpha` (Hunyuan), which makes it one scale for all lengths.
    """
    text = config.get_text_config()
    found = getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", None)
    if not isinstance(found, int):
        return None
    rope = getattr(text, "rope_parameters", None) or {}
    scales = rope.get("rope_type") == "dynamic" and not rope.get("alpha")
    return int(found * max(1.0, rope.get("factor") or 1.0)) if scales else found


def input_embeddings(model: torch.nn.Module) -> torch.nn.Embedding:
    """The layer that turns tokens into vectors. Some models have their own class with a weight of the same shape."""
    return cast(torch.nn.Embedding, base_of(model).get_input_embeddings())


def output_layer(model: torch.nn.Module) -> torch.nn.Linear | None:
    """The layer that gives the logits, if it is a plain linear one. If PEFT trains a copy of it, the copy."""
    head = base_of(model).get_output_embeddings()
    if copies := getattr(head, "modules_to_save", None):
        head = next(iter(copies.values()))
    return head if type(head) is torch.nn.Linear else None


def text_modules(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The modules that text passes through, which have all its weights: the model itself, unless it takes images as well."""
    base = base_of(model)
    text = base.config.get_text_config()
    if text is base.config:
        return [base]
    parts: list[torch.nn.Module] = []
    inside: set[int] = set()
    for module in base.modules():
        # The outermost comes first. Layers within it hold the same config.
        if isinstance(getattr(module, "config", None), type(text)) and id(module) not in inside:
            parts.append(module)
            inside.update(id(inner) for inner in module.modules())
    head = base.get_output_embeddings()
    if parts and head is not None and id(head) not in inside:
        parts.append(head)
    return parts or [base]


def outside_text(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The weights that no text passes through: of a vision tower and its projector. Empty for a model of text alone."""
    text = {id(parameter) for module in text_modules(model) for parameter in module.parameters()}
    return [parameter for parameter in base_of(model).parameters() if id(parameter) not in text]


def layers_of(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the decoder layers of the text part: modules of the classes that the model declares in `_no_split_modules`."""
    base = base_of(model)
    names = set(getattr(base, "_no_split_modules", None) or ())

    def is_layer(module: torch.nn.Module) -> bool:
        return type(module).__name__ in names or any(kind.__name__ in names for kind in type(module).__mro__)

    return [module for part in text_modules(model) for module in part.modules() if is_layer(module)]


def linear_layers(model: "PreTrainedModel") -> list[str]:
    """Names of the linear layers, including quantized ones and GPT-2's Conv1D, without the output layer.

    What a plugin can do with them: see `hub.train.setup.layers`.
    """
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    return [name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear | Conv1D) and layer is not head]


def expert_tensors(model: torch.nn.Module) -> list[tuple[str, str]]:
    """Tensors that hold the matrices of all experts of a mixture, as (name of the module, name of the parameter) each.

    transformers names these modules, or their classes, after the experts: `MixtralExperts`, `JetMoeParallelExperts`. Their
    tensors have three dimensions, experts first, or two where the experts' rows follow each other (DBRX). Linear layers of
    single experts, and biases, are not among them.
    """
    tensors = []
    for name, module in model.named_modules():
        parts = (name.rpartition(".")[2].lower(), type(module).__name__.lower())
        if isinstance(module, torch.nn.Linear) or not any("expert" in part for part in parts):
            continue
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 3 or (parameter.ndim == 2 and not parameter_name.endswith("bias")):
                tensors.append((name, parameter_name))
    return tensors


def expert_stacks(model: torch.nn.Module) -> list[tuple[str, str]]:
    """Those of `expert_tensors` that hold one matrix for each expert: with three dimensions."""
    return [(name, one) for name, one in expert_tensors(model) if getattr(model.get_submodule(name), one).ndim == 3]


def routers(model: "PreTrainedModel") -> list[str]:
    """Names of the linear layers that choose experts: in the block of a mixture's experts, with an output for each of them.

    Routers of a class of their own are no linear layers, and not among them.
    """
    from transformers.pytorch_utils import Conv1D

    blocks: dict[str, set[int]] = {}
    """Name of the module that holds experts and their router -> the number of experts."""

    for name, parameter in expert_tensors(model):
        holder, inside = model.get_submodule(name), [part for part in name.split(".") if "expert" in part.lower()]
        block = name.partition(f".{inside[0]}")[0] if inside else name.rpartition(".")[0]
        tensor = getattr(holder, parameter)
        blocks.setdefault(block, set()).add(len(tensor) if tensor.ndim == 3 else getattr(holder, "moe_num_experts", 0))
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and name.endswith(".experts"):
            blocks.setdefault(name.removesuffix(".experts"), set()).add(len(module))

    def chooses(name: str, layer: torch.nn.Module) -> bool:
        block = next((block for block in blocks if name.startswith(f"{block}.")), None)
        if block is None or ("expert" in (rest := name[len(block) :]) and "router" not in rest):
            return False
        outputs = layer.out_features if isinstance(layer, torch.nn.Linear) else getattr(layer, "nf", 0)
        return outputs in blocks[block]

    return [n for n, layer in model.named_modules() if isinstance(layer, torch.nn.Linear | Conv1D) and chooses(n, layer)]


def without_dropout(model: torch.nn.Module, but: str = "") -> list[str]:
    """Set dropout and router noise of a model to 0, for passes that must give the same numbers again.

    Args:
        model: any model.
        but: part of the names of modules that keep theirs. Empty: none does.

    Returns:
        Names of the modules that had some.
    """
    changed = []
    for path, module in model.named_modules():
        if but and but in path:
            continue
        for name, value in list(vars(module).items()):
            is_dropout = name == "p" and "Dropout" in type(module).__name__
            if (is_dropout or "drop" in name or "jitter" in name) and isinstance(value, float) and value > 0:
                setattr(module, name, 0.0)
                changed.append(path)
    return changed


def waits_for_others(model: torch.nn.Module) -> bool:
    """Whether processes wait for each other within a pass of a model, since its weights are sharded (FSDP2, ZeRO-3).

    Then a process that runs out of memory in it can't go on alone: what it raises ends the run.
    """
    return any(hasattr(parameter, "placements") or hasattr(parameter, "ds_id") for parameter in model.parameters())
