"""Adapters on single parameters: which parameters get one, and how it is computed.

They are the tensors of a mixture's experts, and the weights of layers that PEFT can't name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel

from hub import ConfigError, Run
from hub.models.four_bit_tensor import FourBitTensor
from hub.models.patches import patches_of
from hub.models.structure import expert_stacks, expert_tensors, linear_layers, routers
from hub.train.kernels.expert_adapters import ExpertAdapters, outermost
from hub.train.kernels.packed_experts import FrozenExperts
from hub_lora_sft.targets import leaves, of_group, target_names

ROUTER = "it chooses experts: frozen unless algo.target_modules names it"
TAKEN = "PEFT takes its name for that of experts, and its weight is quantized"

GROUPED = "one product for the tokens of each expert, beside that with its frozen weights"
WHOLE = "PEFT computes the changed tensors of all experts in each pass, since how these experts compute is not known"

IN_NF4 = "algo.load_in_4bit: each tensor was quantized while it was loaded, and is dequantized for each product"
AS_STORED = "they are stored so, and algo.load_in_4bit keeps them: each tensor is dequantized for each product"
IN_8_BITS = "bitsandbytes quantizes linear layers only. algo.load_in_4bit=true algo.load_in_8bit=false quantizes experts too"
OF_TWO_DIMENSIONS = "their tensors have two dimensions, without one for the experts"


@dataclass(frozen=True)
class Targets:
    """What gets an adapter, by full names."""

    layers: list[str]
    """Linear layers."""

    parameters: list[str]
    """Single parameters: tensors of all experts, and weights of linear layers whose names PEFT takes for others."""

    left_out: dict[str, str]
    """What was asked for and gets none, each with the reason."""


def targets_of(asked: str | list[str], model: PreTrainedModel, left_out: Mapping[str, str]) -> Targets:
    """Return what gets an adapter.

    Args:
        asked: auto, all-linear, attention, mlp, or the last parts of names of layers, of experts, or of their tensors.
        model: the model without adapters.
        left_out: layers and tensors that can't have one, with the reason.

    Raises:
        ConfigError: a name that there is not, or only what is left out; or nothing is left.
    """
    stacks, linear = [".".join(tensor) for tensor in expert_stacks(model)], linear_layers(model)
    out = dict(left_out)
    if isinstance(asked, str):
        named = of_group(asked, stacks)
        out |= dict.fromkeys([name for name in routers(model) if name not in left_out], ROUTER)
        missing = {name: out[name] for name in of_group(asked, list(out))}
    else:
        named = [name for name in stacks if any(_names(word, name, stacks) for word in asked)]
        missing = {name: reason for name, reason in out.items() if any(_names(word, name, stacks) for word in asked)}
    experts = [name for name in named if name not in left_out]
    # What names nothing but experts is no name of a layer.
    words = asked if isinstance(asked, str) else [word for word in asked if not _only_experts(word, stacks, linear)]
    if experts and not (of_group(words, [name for name in linear if name not in out]) if isinstance(words, str) else words):
        layers = []
    elif named and not words:
        reasons = ", ".join(sorted({left_out[name] for name in named}))
        raise ConfigError(
            f"algo.target_modules: {', '.join(asked)} can't get an adapter ({reasons}). Type algo.target_modules=auto"
        )
    else:
        layers = target_names(words, model, out, [name for name in stacks if name not in left_out])
    taken = _taken(model, layers)
    weights = dict(model.named_parameters(remove_duplicate=False))
    plain = [name for name in taken if weights[f"{name}.weight"].is_floating_point()]
    missing |= dict.fromkeys([name for name in taken if name not in plain], TAKEN)
    return Targets([name for name in layers if name not in taken], [*experts, *(f"{name}.weight" for name in plain)], missing)


def compute_beside(model: PeftModel, run: Run) -> None:
    """Let adapters on parameters be computed beside these where it is known how, and write to plan.json how they are.

    Args:
        model: with its adapters. Nothing changes if it has none on single parameters, and no experts in 4 bits.
        run: for the log and plan.json.
    """
    patches_of(model).apply(FrozenExperts(model))
    wrapped = outermost(model)
    if not wrapped:
        return
    others = len(patches_of(model).apply(ExpertAdapters(model)).others)
    if others:
        run.say(f"{others} of {len(wrapped)} modules with adapters on their parameters: {WHOLE}. It takes more memory and time")
    run.write_plan(
        expert_adapters="whole" if others == len(wrapped) else "grouped and whole" if others else "grouped",
        expert_adapters_because=WHOLE if others else GROUPED,
    )


def say_how_experts_are_kept(model: PreTrainedModel, run: Run) -> None:
    """Log what the experts of a quantized model are kept in, and write it to plan.json.

    Args:
        model: as loaded in 4 or 8 bits.
        run: for the log and plan.json.
    """
    tensors = [getattr(model.get_submodule(name), one) for name, one in expert_tensors(model)]
    packed = [tensor for tensor in tensors if isinstance(tensor, FourBitTensor)]
    full = [tensor for tensor in tensors if tensor.is_floating_point() and not isinstance(tensor, FourBitTensor)]
    if packed:
        kind, number = packed[0].format, sum(tensor.numel() for tensor in packed)
        bits = 8 * sum(tensor.num_bytes for tensor in packed) / number
        because = AS_STORED if kind == "mxfp4" else IN_NF4
        run.say(f"the experts' {number:,} weights are in {kind}, {bits:.1f} bits each: {because}")
        run.write_plan(experts_kept_in=kind, experts_kept_in_because=because)
    if full:
        number, dtype = sum(tensor.numel() for tensor in full), str(full[0].dtype).removeprefix("torch.")
        because = OF_TWO_DIMENSIONS if getattr(model, "is_loaded_in_4bit", False) else IN_8_BITS
        run.say(f"the experts' {number:,} weights stay in {dtype}: {because}")
        run.write_plan(experts_kept_in=dtype, experts_kept_in_because=because)


def _names(word: str, name: str, stacks: Sequence[str]) -> bool:
    """Whether a word of `target_modules` is the end of a name, or of that of the module of experts that a tensor is in."""
    return any(f".{full}".endswith(f".{word}") for full in ((name, name.rpartition(".")[0]) if name in stacks else (name,)))


def _only_experts(word: str, stacks: Sequence[str], linear: Sequence[str]) -> bool:
    return any(_names(word, name, stacks) for name in stacks) and not any(f".{name}".endswith(f".{word}") for name in linear)


def _taken(model: PreTrainedModel, layers: Sequence[str]) -> list[str]:
    """The layers whose names PEFT takes for those that single experts had in transformers 4 (`gate_proj` of DeepSeek).

    Named in `target_modules` such a layer would get no adapter, and the experts another one. PEFT is asked by its own rule,
    which it follows when an adapter is loaded as well.
    """
    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:  # releases that take names as they are
        return []
    taken = set()
    for leaf in leaves(layers):
        config = LoraConfig(target_modules=[leaf])
        try:
            convert_peft_config_for_transformers(config, model, None)
        except ValueError:  # one of several names that belong together
            taken.add(leaf)
        else:
            if leaf not in (config.target_modules or ()):
                taken.add(leaf)
    return [name for name in layers if name.rpartition(".")[2] in taken]
