"""The matrices of a model that train, their orientation, and how much of each is free."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hub import ConfigError, ModelError
from hub.errors import did_you_mean
from hub.models.load import linear_layers
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


def find_targets(model: PreTrainedModel, algo: OsftConfig) -> list[Target]:
    """The weights that `algo.target_patterns` names, in the model's order. `num_free` is not set yet.

    Raises:
        ConfigError: a pattern matches none of them.
        ModelError: a weight is quantized.
    """
    on_inputs = algo.subspace == "activations"
    targets = [_linear(model, name, on_inputs) for name in linear_layers(model)]
    if not on_inputs and algo.parametrization == "fast":
        targets += _experts(model)
    for target in targets:
        if not target.weight(model).is_floating_point():
            raise ModelError(
                f"{target.name} is quantized ({target.weight(model).dtype}): such weights can't take small changes. "
                "Type algo=lora_sft, or a model that is stored in bfloat16"
            )
    chosen = _matching([target.name for target in targets], algo.target_patterns)
    if not chosen:
        raise ConfigError(
            f"algo.target_patterns={algo.target_patterns}: no matrix of this model trains so. Type algo.target_patterns=all"
        )
    order = {name: number for number, (name, _) in enumerate(model.named_modules())}
    return sorted((t for t in targets if t.name in chosen), key=lambda t: (order[t.module], t.name))


def experts_left_out(model: PreTrainedModel, algo: OsftConfig) -> list[str]:
    """Experts' tensors that `algo.target_patterns` names, but the chosen form of OSFT can't train."""
    if algo.subspace == "weights" and algo.parametrization == "fast":
        return []
    names = [target.name for target in _experts(model)]
    patterns = algo.target_patterns
    if isinstance(patterns, list):
        return [name for name in names if _matches_any(name, patterns)]
    return [] if patterns == "attention" else names


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
    for module_name, module in model.named_modules():
        if "expert" not in module_name.rpartition(".")[2]:
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 3:
                shape = tuple(parameter.shape)
                targets.append(Target(f"{module_name}.{name}", module_name, name, shape, shape[1] < shape[2], False))
    return targets


def _matching(names: list[str], patterns: str | list[str]) -> set[str]:
    if patterns == "all":
        return set(names)
    in_attention = {name for name in names if _is_in_attention(name)}
    if isinstance(patterns, str):
        return in_attention if patterns == "attention" else set(names) - in_attention
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            known = sorted({name.rpartition(".")[2] for name in names})
            near = did_you_mean(pattern.rpartition(".")[2], known) or did_you_mean(pattern, names)
            raise ConfigError(
                f"algo.target_patterns: {pattern} matches no matrix.{near} Names are like {names[0]}, "
                f"and end in {', '.join(known)}"
            )
    return {name for name in names if _matches_any(name, patterns)}


def _matches_any(name: str, patterns: list[str]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def _is_in_attention(name: str) -> bool:
    """Whether a module is part of attention, by its full name."""
    return any("attn" in part or "attention" in part for part in name.split("."))
