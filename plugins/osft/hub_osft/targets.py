"""The matrices of a model that train, their orientation, and how much of each is free."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hub import ConfigError, ModelError
from hub.errors import did_you_mean
from hub.models.structure import expert_tensors, linear_layers
from hub.recipe import Setup
from hub.train.setup.layers import in_words, unsuited
from hub_osft.config import OsftConfig
from hub_osft.subspace import num_free

LINEAR = (torch.nn.Linear, Conv1D)
"""Classes of layers that can be targets. GPT-2's Conv1D stores its weight as (in, out)."""


@dataclass(frozen=True)
class Target:
    """One weight that trains: of a linear layer, or all experts' matrices in one tensor."""

    name: str
    """Full name of the layer, or of the experts' tensor."""

    module: str
    """Full name of the module with the weight."""

    parameter: str
    """Name of the weight in that module."""

    shape: tuple[int, ...]
    """(a, b), or (experts, a, b)."""

    left: bool
    """Whether Q acts on the first dimension of the matrix, so that A is its transpose."""

    conv1d: bool
    """Whether the weight is stored as (in, out)."""

    num_free: int = 0

    in_full: bool = False
    """Whether its directions are needed in full, however many there are."""

    @property
    def experts(self) -> bool:
        return len(self.shape) == 3

    @property
    def size(self) -> int:
        """p: total number of directions."""
        return self.shape[-2] if self.left else self.shape[-1]

    @property
    def rows(self) -> int:
        """M: length of the other side."""
        return self.shape[-1] if self.left else self.shape[-2]

    def weight(self, model: PreTrainedModel) -> torch.Tensor:
        """The weight."""
        weight: torch.Tensor = getattr(model.get_submodule(self.module), self.parameter)
        return weight


def trains_experts(algo: OsftConfig) -> bool:
    """Whether the chosen form of OSFT can train experts' tensors."""
    return algo.subspace == "weights" and algo.parametrization == "fast"


def left_out_weights(setup: Setup, model: PreTrainedModel, algo: OsftConfig) -> dict[str, str]:
    """Return the weights that OSFT can't train, each with the reason, by target name. Found by a pass over a few tokens.

    Args:
        setup: for the device and the log.
        model: as loaded.
        algo: the options. If they leave out all experts, those are not among the weights.
    """
    weights = {name: (name, "weight") for name in linear_layers(model)}
    if trains_experts(algo):
        weights |= {".".join(tensor): tensor for tensor in expert_tensors(model)}
    reasons = unsuited(model, list(weights.values()), setup.session.device, setup.run.say)
    found = {name: reasons[weight] for name, weight in weights.items() if weight in reasons}
    for name, (module, parameter) in weights.items():
        if getattr(model.get_submodule(module), parameter).ndim == 2 and name != module:
            found.setdefault(name, "the tensor is not one matrix for each expert")
    return found


def find_targets(model: PreTrainedModel, algo: OsftConfig, left_out: Mapping[str, str] | None = None) -> list[Target]:
    """The weights that `algo.target_patterns` names, in the model's order. `num_free` is not set yet.

    Args:
        model: as loaded.
        algo: the options.
        left_out: weights that can't train, with the reason. None: every weight can.

    Raises:
        ConfigError: a pattern matches none of them, or only weights that are left out.
        ModelError: a weight is quantized.
    """
    on_inputs = algo.subspace == "activations"
    targets = [_linear(model, name, on_inputs) for name in linear_layers(model)]
    if trains_experts(algo):
        targets += _experts(model)
    chosen = _chosen([target.name for target in targets], algo.target_patterns, left_out or {})
    targets = [target for target in targets if target.name in chosen]
    for target in targets:
        if not target.weight(model).is_floating_point():
            raise ModelError(
                f"{target.name} is quantized ({target.weight(model).dtype}): such weights can't take small changes. "
                "Type algo=lora_sft, or a model that is stored in bfloat16"
            )
    order = {name: number for number, (name, _) in enumerate(model.named_modules())}
    return sorted(targets, key=lambda t: (order[t.module], t.name))


def asked_but_left_out(algo: OsftConfig, left_out: Mapping[str, str]) -> dict[str, str]:
    """The weights that `algo.target_patterns` names and that are left out, with the reason."""
    if isinstance(algo.target_patterns, list):
        return {name: reason for name, reason in left_out.items() if _matches_any(name, algo.target_patterns)}
    chosen = _group(list(left_out), algo.target_patterns)
    return {name: left_out[name] for name in left_out if name in chosen}


def experts_left_out(model: PreTrainedModel, algo: OsftConfig, targets: Iterable[Target]) -> list[str]:
    """Experts' tensors that `algo.target_patterns` names and that are not among the targets."""
    trained = {target.name for target in targets}
    names = [name for tensor in expert_tensors(model) if (name := ".".join(tensor)) not in trained]
    patterns = algo.target_patterns
    if isinstance(patterns, list):
        return [name for name in names if _matches_any(name, patterns)]
    chosen = _group(names, patterns)
    return [name for name in names if name in chosen]


def with_ratio(targets: Iterable[Target], ratio: float) -> list[Target]:
    """The targets with the same fraction of directions free in each.

    Raises:
        ConfigError: the model is too small for the ratio: nothing would be free in its largest matrix.
    """
    targets = list(targets)
    largest = max(target.size for target in targets)
    if ratio * largest < 0.5:
        raise ConfigError(
            f"algo.unfreeze_rank_ratio={ratio:g} leaves no direction free: the largest matrix of the model has {largest}. "
            f"Type at least algo.unfreeze_rank_ratio={1 / largest:.2g}"
        )
    return [replace(target, num_free=num_free(ratio, target.size)) for target in targets]


def with_protected(targets: Iterable[Target], fractions: dict[str, float]) -> list[Target]:
    """The targets with a separate fraction of protected directions in each: k = floor(fraction * p), at least one is free.

    Args:
        targets: as found.
        fractions: fraction of protected directions by target name.
    """
    return [replace(t, num_free=max(1, t.size - int(fractions[t.name] * t.size))) for t in targets]


def _linear(model: PreTrainedModel, name: str, on_inputs: bool) -> Target:
    layer = model.get_submodule(name)
    assert isinstance(layer, LINEAR)
    conv1d = isinstance(layer, Conv1D)
    a, b = layer.weight.shape
    return Target(name, name, "weight", (a, b), conv1d if on_inputs else a < b, conv1d)


def _experts(model: PreTrainedModel) -> list[Target]:
    """Experts' matrices that are fused in one tensor of three dimensions."""
    targets: list[Target] = []
    for module, parameter in expert_tensors(model):
        shape = tuple(getattr(model.get_submodule(module), parameter).shape)
        if len(shape) == 3:
            targets.append(Target(f"{module}.{parameter}", module, parameter, shape, shape[1] < shape[2], False))
    return targets


def _chosen(names: list[str], patterns: str | list[str], left_out: Mapping[str, str]) -> set[str]:
    """The names that the patterns choose, without those that are left out."""
    usable = [name for name in names if name not in left_out]
    known = sorted({name.rpartition(".")[2] for name in usable})
    if isinstance(patterns, str):
        if chosen := _group(usable, patterns):
            return chosen
        reasons = in_words((name, left_out[name]) for name in _group(list(left_out), patterns))
        raise ConfigError(
            f"algo.target_patterns={patterns}: no matrix of this model trains so. "
            + (f"Left out: {reasons}. " if reasons else "")
            + (f"Names end in {', '.join(known)}. Type algo.target_patterns=all" if known else "Type algo=sft")
        )
    for pattern in patterns:
        matched = [name for name in names if re.search(pattern, name)]
        if not matched:
            near = did_you_mean(pattern.rpartition(".")[2], known) or did_you_mean(pattern, names)
            raise ConfigError(
                f"algo.target_patterns: {pattern} matches no matrix.{near} Names are like {names[0]}, "
                f"and end in {', '.join(known)}"
            )
        if not set(matched) - left_out.keys():
            raise ConfigError(
                f"algo.target_patterns: {pattern} matches only weights that OSFT can't train: "
                f"{in_words((name, left_out[name]) for name in matched)}. Names end in {', '.join(known)}"
            )
    return {name for name in usable if _matches_any(name, patterns)}


def _group(names: list[str], patterns: str) -> set[str]:
    """The names in all, attention or mlp."""
    if patterns == "all":
        return set(names)
    return {name for name in names if _is_in_attention(name) == (patterns == "attention")}


def _matches_any(name: str, patterns: list[str]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def _is_in_attention(name: str) -> bool:
    """Whether a module is part of attention, by its full name."""
    return any("attn" in part or "attention" in part for part in name.split("."))
