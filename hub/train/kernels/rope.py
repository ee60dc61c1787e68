"""Rotary position embeddings (RoPE) that depend on a text's length, computed for each sample of a micro-batch.

Two values of transformers' `rope_type` do (modeling_rope_utils.py, `dynamic_rope_update`):

- `longrope` (Phi-3.5, Phi-4-mini; Ding et al., arXiv 2402.13753) has short factors up to `original_max_position_embeddings`,
  and long ones for longer texts;
- `dynamic` (NTK-aware scaling) has other frequencies for each length beyond `max_position_embeddings`, and keeps those of the
  longest text so far.

transformers takes the longest position of a whole batch. So a short sample beside a long one would get the long one's rope, and
with `dynamic` also that of an earlier batch. Here each sample gets what it would get alone in a model that was just loaded.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from transformers import PretrainedConfig

from hub.errors import ModelError
from hub.models.patches import Edits, ModelPatches, Patch
from hub.models.structure import base_of, text_config

BY_TWO_FACTORS = ("longrope", "su")
BY_EACH_LENGTH = "dynamic"
"""Values of `rope_type`. The older name of `longrope` is `su`."""

ORIGINAL = "original_max_position_embeddings"

Output = torch.Tensor | tuple[torch.Tensor, ...]


class RopeOfEachSample(Patch):
    """Each sample of a micro-batch has the rope of its own length.

    Args:
        modules: the model's rotary embeddings that depend on a text's length.
        length: tokens up to which all samples have the same rope.
        exact: whether each length above has a rope of its own. Otherwise all have the same.
    """

    def __init__(self, modules: Sequence[torch.nn.Module], length: int, exact: bool) -> None:
        self._modules, self._length, self._exact = modules, length, exact

    def apply(self, edits: Edits) -> None:
        for module in self._modules:
            edits.assign(module, "forward", partial(_of_each_sample, module, self._length, self._exact, module.forward))

    def report(self, plan: dict[str, object]) -> None:
        plan["rope"] = "of each sample's own length"


def use_own_rope(patches: ModelPatches, model: torch.nn.Module, longest: int, library: str = "") -> str:
    """Let each sample have the rope of its own length, if it depends on that. The decision goes to plan.json.

    Args:
        patches: the owner of the model's patches.
        model: a transformers model.
        longest: tokens of the longest sample.
        library: whose kernels are in the model. Its rope is left alone. Empty: the hub's.

    Returns:
        A line for the log; empty if all samples have the same rope.

    Raises:
        ModelError: the rope depends on the length, samples are long enough for that, and this model's can't be patched.
    """
    text = text_config(model)
    kinds = {kind: length for kind, length in _kinds(text).items() if longest > length}
    if not kinds:
        return ""
    name, length = min(kinds.items(), key=lambda item: item[1])
    modules = [module for module in base_of(model).modules() if _has_kind(module, kinds)]
    if library or not modules:
        whose, native = library or "this model's code", ", or algo.backend=native" if library else ""
        raise ModelError(
            f"the model's rope ({name}) is another one for texts above {length} tokens, and {whose} would give all samples "
            f"of a micro-batch that of the longest. Type data.max_seq_len={length}{native}"
        )
    words = f"the model's rope ({name}) is another one for texts above {length} tokens"
    patches.decide("rope", "of the longest sample", words)
    patches.apply(RopeOfEachSample(modules, length, BY_EACH_LENGTH in kinds))
    return f"each sample has the rope of its own length: {words}"


def rope_by_length(model: torch.nn.Module) -> bool:
    """Whether the rope of longer texts is another one, so that a token appended to a text may change what is before it."""
    return bool(_kinds(text_config(model)))


def _kinds(config: PretrainedConfig) -> dict[str, int]:
    """Return the kinds of rope of a model that depend on a text's length, each with the tokens up to which it does not."""
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    found: dict[str, int] = {}
    # Models with several types of layers have parameters for each.
    for values in [parameters, *parameters.values()]:
        if not isinstance(values, Mapping):
            continue
        name = str(values.get("rope_type") or values.get("type") or "")
        length = getattr(config, "max_position_embeddings", None)
        if name in BY_TWO_FACTORS:
            length = getattr(config, ORIGINAL, None) or values.get(ORIGINAL) or length
        scales = name == BY_EACH_LENGTH and not values.get("alpha")  # Hunyuan's `alpha` is one scale for all lengths
        if (name in BY_TWO_FACTORS or scales) and isinstance(length, int):
            found[name] = min(length, found.get(name, length))
    return found


def _has_kind(module: torch.nn.Module, kinds: Mapping[str, int]) -> bool:
    found = vars(module).get("rope_type")
    return any(name in kinds for name in (found.values() if isinstance(found, Mapping) else [found]))


def _of_each_sample(
    module: Any,
    length: int,
    exact: bool,
    forward: Callable[..., Output],
    x: torch.Tensor,
    position_ids: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> Output:
    """Compute cosines and sines as `forward` does, with samples of each length apart.

    Args:
        module: the rotary embedding.
        length: tokens up to which all samples have the same rope.
        exact: whether each length above has a rope of its own. Otherwise all have the same.
        forward: its own forward.
        x: for device and type.
        position_ids: (R, T). Position 0 begins a sample. Padding has the last position of its sample.
        args: passed on.
        kwargs: passed on.
    """

    def same(positions: torch.Tensor) -> Output:
        if exact:
            _forget_lengths(module)
        return forward(x, positions, *args, **kwargs)

    if int(position_ids.max()) < length:
        return same(position_ids)
    positions = position_ids.flatten()
    begins = position_ids == 0
    begins[:, 0] = True
    sample = begins.flatten().cumsum(0) - 1
    lengths = torch.zeros_like(positions).scatter_reduce_(0, sample, positions + 1, "amax")[sample]
    lengths = lengths.clamp(length, None if exact else length + 1)
    chosen = [(lengths == value).nonzero()[:, 0] for value in lengths.unique().tolist()]
    if len(chosen) == 1:
        return same(position_ids)
    parts: list[Any] = [same(positions[places][None]) for places in chosen]
    back = torch.cat(chosen).argsort()

    def join(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        joined: torch.Tensor = torch.cat(list(parts), dim=1)[0, back].unflatten(0, position_ids.shape)
        return joined

    if isinstance(parts[0], torch.Tensor):
        return join(parts)
    return tuple(map(join, zip(*parts, strict=True)))


def _forget_lengths(module: Any) -> None:
    """Let a rotary embedding be as it was loaded: without the frequencies of a longer text that it has seen."""
    for name in [name for name in (*module._buffers, *vars(module)) if name.endswith("original_inv_freq")]:
        current = name.replace("original_inv_freq", "inv_freq")
        # A copy, since `longrope` writes in place, and layers of both kinds may share the module.
        setattr(module, current, getattr(module, name).to(getattr(module, current).device, copy=True))
    for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
        setattr(module, name, module.original_max_seq_len)
