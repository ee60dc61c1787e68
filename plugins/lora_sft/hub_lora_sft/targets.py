"""Which layers and which experts get an adapter, which are left out and why, and what has one in the end."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer, LoraModel, ParamWrapper
from transformers import PreTrainedModel

from hub import ConfigError, Run
from hub.errors import did_you_mean, first_line
from hub.models.structure import expert_stacks, linear_layers
from hub.recipe import Setup
from hub.train.setup.layers import in_words, unsuited
from hub_lora_sft.config import LoraSftConfig

REFUSED = "PEFT refuses the layer, since fused kernels read its weight"


def left_out_layers(setup: Setup, model: PreTrainedModel) -> dict[str, str]:
    """Return the linear layers, and the tensors of experts, that an adapter would not train right, each with the reason.

    Found by a pass over a few tokens.

    Args:
        setup: for the device and the log.
        model: the model without adapters.
    """
    names, experts = linear_layers(model), expert_stacks(model)
    weights = {(name, "weight"): name for name in names} | {tensor: ".".join(tensor) for tensor in experts}
    reasons = {
        weights[weight]: reason
        for weight, reason in unsuited(model, list(weights), setup.session.device, setup.run.say).items()
    }
    # Without it, PEFT raises an error when adapters are added.
    check = getattr(LoraModel, "_check_target_module_compatiblity", None)
    for name in names if check is not None else ():
        try:
            cast(Any, check)(None, LoraConfig(), model, name.rpartition(".")[2])
        except ValueError:
            reasons.setdefault(name, REFUSED)
    return {name: reasons[name] for name in weights.values() if name in reasons}


def target_names(
    asked: str | list[str], model: PreTrainedModel, left_out: Mapping[str, str] | None = None, experts: Sequence[str] = ()
) -> list[str]:
    """Return the full names of the layers that get an adapter.

    Args:
        asked: auto, all-linear, attention, mlp, or the last parts of module names.
        model: the model without adapters.
        left_out: layers that get none, with the reason. None: every linear layer can get one.
        experts: names of the experts' tensors that can get one, for what is allowed.

    Raises:
        ConfigError: a name that no linear layer has, or only layers that are left out; or nothing is left.
    """
    left_out = left_out or {}
    every = linear_layers(model)
    layers = [name for name in every if name not in left_out]
    known = leaves([*layers, *experts])
    allowed = f"Allowed: {', '.join(known)}" if known else "It has none that can"
    if isinstance(asked, str):
        if chosen := of_group(asked, layers):
            return chosen
        reasons = in_words((name, left_out[name]) for name in of_group(asked, list(left_out)))
        raise ConfigError(
            f"algo.target_modules={asked}: no such layer of this model can get an adapter. "
            + (f"Left out: {reasons}. " if reasons else "")
            + (
                f"Linear layers that can: {', '.join(leaves(layers))}. Type algo.target_modules=auto"
                if layers
                else "Type algo=sft"
            )
        )
    matched: set[str] = set()
    for word in asked:
        named = [name for name in every if name == word or name.endswith(f".{word}")]
        if not named and any(f".{name}".endswith(f".{word}") for name, _ in model.named_modules()):
            raise ConfigError(
                f"algo.target_modules: {word} gets no adapter, only linear layers below the output layer"
                f"{' and experts' if experts else ''} do. {allowed}. "
                f"To train it as a whole type algo.modules_to_save=[{word}]"
            )
        if not named:
            raise ConfigError(f"algo.target_modules: no linear layer is called {word}. {allowed}." + did_you_mean(word, known))
        if not set(named) - left_out.keys():
            reasons = ", ".join(sorted({left_out[name] for name in named}))
            raise ConfigError(f"algo.target_modules: {word} can't get an adapter ({reasons}). {allowed}")
        matched.update(named)
    return [name for name in layers if name in matched]


def report(run: Run, model: PeftModel, experts: Sequence[tuple[str, str]], left_out: Mapping[str, str]) -> None:
    """Log and write to plan.json what has an adapter, as PEFT has added them.

    Args:
        run: receives the lines and the plan.
        model: with adapters.
        experts: the experts' tensors of the model before it got them.
        left_out: layers that were asked for and got none, each with the reason.
    """
    layers, parameters = adapted(model)
    if left_out:
        run.say(f"without an adapter: {in_words(left_out.items())}")
    names = {".".join(tensor) for tensor in experts}
    with_one = names & set(parameters)
    if not with_one and names:
        run.say(f"the experts' weights are {len(names)} fused tensors, which get no adapter: they stay frozen")
    elif names:
        held = {name.rpartition(".")[0] for name in with_one}
        number = sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and _module_of(name) in held)
        rest = " (the others are frozen)" if len(with_one) < len(names) else ""
        fused = f"{len(with_one)} of the experts' {len(names)} fused tensors{rest}"
        run.say(f"adapters for each expert in {fused}: {number:,} parameters")
    run.write_plan(
        target_modules=leaves(layers), target_parameters=leaves(parameters), num_adapters=len(layers) + len(parameters)
    )


@contextmanager
def refusals_in_one_line(algo: LoraSftConfig, experts: Sequence[tuple[str, str]]) -> Iterator[None]:
    """Turn an error of PEFT while it adds adapters into one line.

    Args:
        algo: for what to type.
        experts: the experts' tensors of the model.

    Raises:
        ConfigError: PEFT refuses these options for this model.
    """
    try:
        yield
    except (ValueError, TypeError, NotImplementedError) as error:
        advice = "Choose other layers with algo.target_modules"
        if experts and (algo.use_dora or algo.lora_dropout):
            set_to = {"algo.use_dora=false": algo.use_dora, "algo.lora_dropout=0": algo.lora_dropout}
            typed = " ".join(option for option, is_set in set_to.items() if is_set)
            advice = f"Type {typed}, or algo.target_modules=attention, which leaves the experts out"
        raise ConfigError(f"PEFT can't add these adapters: {first_line(error).rstrip('.')}. {advice}") from error


def adapted(model: PeftModel) -> tuple[list[str], list[str]]:
    """Return the full names, in the plain model, of the layers and of the single parameters that have an adapter."""
    layers, parameters = [], []
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, ParamWrapper):
            # Several parameters of one module: one wrapper lies in the next.
            holder = ".".join(part for part in name.split(".") if part != "base_layer")
            parameters.append(f"{holder}.{module.parameter_name}")
        elif isinstance(module, LoraLayer):
            layers.append(name)
    return layers, parameters


def of_group(asked: str, names: Sequence[str]) -> list[str]:
    """The layers of auto, all-linear, attention or mlp."""
    if asked in ("auto", "all-linear"):
        return list(names)
    return [name for name in names if ("attn" in name or "attention" in name) == (asked == "attention")]


def leaves(names: Sequence[str]) -> list[str]:
    """Return the last parts of names, each once."""
    return sorted({name.rpartition(".")[2] for name in names})


def _module_of(parameter: str) -> str:
    """The module of the plain model that a parameter of an adapter belongs to."""
    return parameter.removeprefix("base_model.model.").replace(".base_layer", "").partition(".lora_")[0]
