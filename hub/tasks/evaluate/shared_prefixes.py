"""Rows that share their beginning, in one packed row that has each shared token once.

The choices of a question share the question, and the questions of a task the solved examples in front of them. Sorted by their
tokens, each row adds only what the row ahead of it does not have. Its tokens see that row's tokens as if they were their own:
its keys are gathered from where they stand. What a token has is the same as in a row of its own, since no token sees a later
one.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from hub.models.patches import Edits, Patch
from hub.models.structure import base_of
from hub.train.kernels.attention import UnsuitedError, configs_of, needs_mask, torch_kernel, varlen_attention

NAME = "hub_shared_prefixes"
"""Of the attention in transformers' registry."""

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Shared:
    """A packed row: T tokens of R rows that may share beginnings."""

    input_ids: Ids
    """(T,)"""

    positions: npt.NDArray[np.int64]
    """(T,) of each token in its own row."""

    places: tuple[npt.NDArray[np.int64], ...]
    """Of each row: where its tokens are among the T."""

    num_new: tuple[int, ...]
    """Of each row: how many of its tokens, the last ones, no earlier row has."""


def order_of(rows: Sequence[Ids]) -> list[int]:
    """Return the order in which rows share most: by their tokens."""
    keys = [row.astype(">i4").tobytes() for row in rows]
    return sorted(range(len(rows)), key=keys.__getitem__)


def num_shared(row: Ids, other: Ids) -> int:
    """Count the tokens with which both rows begin."""
    least = min(len(row), len(other))
    differs = np.flatnonzero(row[:least] != other[:least])
    return int(differs[0]) if len(differs) else least


def share(rows: Sequence[Ids]) -> Shared:
    """Pack rows, each behind those that it shares tokens with.

    Args:
        rows: tokens of each row, in the order of `order_of`.
    """
    pieces, positions, places, num_new = [], [], [], []
    total, before, before_places = 0, np.zeros(0, np.int32), np.zeros(0, np.int64)
    for row in rows:
        known = num_shared(row, before)
        new = len(row) - known
        pieces.append(row[known:])
        positions.append(np.arange(known, len(row)))
        before, before_places = row, np.concatenate([before_places[:known], np.arange(total, total + new)])
        places.append(before_places)
        num_new.append(new)
        total += new
    return Shared(np.concatenate(pieces), np.concatenate(positions), tuple(places), tuple(num_new))


@dataclass(frozen=True)
class _Bounds:
    """Where queries and keys of each row are, on the device."""

    keys: torch.Tensor
    """(K,) the places of the keys, row after row."""

    query_starts: torch.Tensor
    key_starts: torch.Tensor
    num_queries: tuple[int, ...]
    num_keys: tuple[int, ...]

    @classmethod
    def of(cls, shared: Shared, device: torch.device) -> "_Bounds":
        used = [(places, new) for places, new in zip(shared.places, shared.num_new, strict=True) if new]
        num_queries, num_keys = tuple(new for _, new in used), tuple(len(places) for places, _ in used)

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            # From memory that is not pinned, a copy would wait until the GPU has finished all its earlier work.
            return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)

        def starts(lengths: tuple[int, ...]) -> torch.Tensor:
            return moved(torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32))

        keys = moved(torch.from_numpy(np.concatenate([places for places, _ in used])))
        return cls(keys, starts(num_queries), starts(num_keys), num_queries, num_keys)


class SharedPrefixes(Patch):
    """The model's attention is one over rows that share beginnings. Runs within `reading` only.

    Args:
        model: a transformers model.
    """

    _current: _Bounds | None = None
    """Of the pass that is running. The registry of transformers has one function for all models."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._base = base_of(model)

    def apply(self, edits: Edits) -> None:
        # Without a mask registered under its name, transformers makes none.
        AttentionInterface.register(NAME, _attend)
        before = [(config, config._attn_implementation) for config in configs_of(self._base)]

        def undo() -> None:
            for config, name in before:
                config._attn_implementation = name

        edits.record(self._base, "attention", undo)
        for config, _ in before:
            config._attn_implementation = NAME

    @contextmanager
    def reading(self, shared: Shared, device: torch.device) -> Iterator[None]:
        """Within it the model's rows are these."""
        SharedPrefixes._current = _Bounds.of(shared, device)
        try:
            yield
        finally:
            SharedPrefixes._current = None


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **others: object,
) -> tuple[torch.Tensor, None]:
    """Compute causal attention of each row's new tokens over all tokens of their row.

    Args:
        module: the attention layer.
        query: (1, heads, T, head size).
        key: (1, key-value heads, T, head size).
        value: the same.
        attention_mask: None.
        scaling: factor of the scores. None: one over the root of the head size.
        dropout: 0.
        sliding_window: number of tokens that a token sees, itself included.
        others: further keywords of some models. Those that change the result are refused.

    Returns:
        (1, T, heads, head size), and None.

    Raises:
        UnsuitedError: the model needs something that is not supported.
    """
    bounds = SharedPrefixes._current
    unknown = [name for name in ("softcap", "s_aux") if others.get(name) is not None]
    if bounds is None or unknown or dropout or attention_mask is not None or not getattr(module, "is_causal", True):
        raise UnsuitedError(f"attention over shared beginnings without {', '.join(unknown) or 'masks and dropout'}")
    if not sliding_window and needs_mask(module):
        raise UnsuitedError("attention over shared beginnings without a window or chunks that only a mask has")
    if len(query) != 1:
        raise UnsuitedError("attention over shared beginnings in more than one row")
    key, value = key[:, :, bounds.keys], value[:, :, bounds.keys]
    wanted = value.dtype
    if wanted == torch.float32 and torch.is_autocast_enabled(query.device.type):
        wanted = torch.get_autocast_dtype(query.device.type)
    if query.device.type == "cuda" and wanted in (torch.bfloat16, torch.float16):
        return varlen_attention(
            torch_kernel(query.device),
            module,
            query,
            key,
            value,
            None,
            scaling,
            cu_seq_lens_q=bounds.query_starts,
            max_length_q=max(bounds.num_queries),
            cu_seq_lens_k=bounds.key_starts,
            max_length_k=max(bounds.num_keys),
            sliding_window=sliding_window,
        )
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    parts = []
    pieces = zip(
        query.split(bounds.num_queries, 2), key.split(bounds.num_keys, 2), value.split(bounds.num_keys, 2), strict=True
    )
    for one_query, one_key, one_value in pieces:
        kind = one_value.dtype
        mask = _mask(one_query.shape[2], one_key.shape[2], sliding_window, query.device)
        whole = mask is None and one_query.shape[2] > 1
        parts.append(
            F.scaled_dot_product_attention(
                one_query.to(kind), one_key.to(kind), one_value, attn_mask=mask, is_causal=whole, scale=scaling
            )
        )
    return torch.cat(parts, 2).transpose(1, 2), None


def _mask(num_queries: int, num_keys: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Which keys each query sees, (queries, keys). None: all up to its own place, or all if there is one query."""
    if (not window or num_keys <= window) and (num_queries == num_keys or num_queries == 1):
        return None
    places = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
    keys = torch.arange(num_keys, device=device)
    seen = keys <= places
    return seen & (places - keys < window) if window else seen
