"""Attention over a packed row by a variable-length kernel: no mask, and the work grows with each sample's own length."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from transformers import AttentionInterface

from hub.train.batch.collate import MicroBatch
from hub.train.kernels.recompute import base_of

VARLEN = "hub_varlen"
"""Name of the attention in transformers' register."""


class UnsuitedError(Exception):
    """A model needs what the attention here does not have. It keeps its own then."""


@dataclass(frozen=True)
class Kernel:
    """A kernel, and what it takes. Torch's differs between versions."""

    attend: Callable[..., torch.Tensor]
    """Called like `torch.nn.attention.varlen.varlen_attn`."""

    options: frozenset[str]
    """Names of its keywords."""

    fewer_keys: bool = False
    """Fewer key heads than query heads, though it has no keyword for it."""


def flash_attention_4() -> Kernel:
    """That of the package flash-attn-4, which has to be there."""
    from hub.train.kernels.flash4 import attend

    return Kernel(attend, frozenset(inspect.signature(attend).parameters))


@cache
def _kernel(device: torch.device) -> Kernel:
    """Torch's own."""
    from torch.nn.attention.varlen import varlen_attn

    options = frozenset(inspect.signature(varlen_attn).parameters)
    return Kernel(varlen_attn, options, "enable_gqa" not in options and device.type == "cuda" and _takes_fewer_keys(device))


@torch.enable_grad()
def _takes_fewer_keys(device: torch.device) -> bool:
    """Whether keys and values of two query heads each give what they give when they are repeated."""
    from torch.nn.attention.varlen import varlen_attn

    bounds = torch.tensor([0, 5, 16], dtype=torch.int32, device=device)
    numbers = torch.linspace(-1, 1, 16 * 8 * 64, device=device).to(torch.bfloat16).view(16, 8, 64)

    def results(times: int) -> list[torch.Tensor]:
        parts = [part.clone().requires_grad_() for part in numbers.split((4, 2, 2), dim=1)]
        query, key, value = (part.repeat_interleave(times if i else 1, dim=1) for i, part in enumerate(parts))
        output = varlen_attn(query, key, value, bounds, bounds, 16, 16)
        return [output, *torch.autograd.grad(output.float().square().sum(), parts)]

    try:
        found = results(1)
    except RuntimeError:
        return False
    return all(torch.allclose(one, other, rtol=2e-2, atol=2e-2) for one, other in zip(found, results(2), strict=True))


def _varlen_attention(
    kernel: Kernel,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each sample of a packed row, or within each of several rows.

    Rows may be padded on the right: no token sees what is behind it.

    Args:
        kernel: what computes it.
        module: the attention layer.
        query: (R, heads, T, head size).
        key: (R, key-value heads, T, head size).
        value: the same.
        attention_mask: None; the samples' bounds say all.
        scaling: of the scores. None: one over the root of the head size.
        dropout: of the attention weights; only 0 is known here.
        cu_seq_lens_q: (n + 1,) int32, where the samples of the one row begin. None: each row is a sample.
        max_length_q: no sample is longer.
        sliding_window: how far back a token sees, itself included.
        others: what some models need besides; those that change the result are refused.

    Returns:
        (R, T, heads, head size), and None.

    Raises:
        UnsuitedError: the model needs what this attention does not have.
    """
    unknown = [name for name in ("softcap", "s_aux") if others.get(name) is not None]
    if unknown or dropout or attention_mask is not None or getattr(module, "is_causal", True) is False:
        raise UnsuitedError(f"variable-length attention without {', '.join(unknown) or 'masks and dropout'}")
    rows, _, length, _ = query.shape
    if cu_seq_lens_q is None or max_length_q is None:
        cu_seq_lens_q = torch.arange(0, rows * length + 1, length, dtype=torch.int32, device=query.device)
        max_length_q = length
    wanted = value.dtype
    if wanted == torch.float32 and torch.is_autocast_enabled(query.device.type):
        wanted = torch.get_autocast_dtype(query.device.type)
    query, key, value = (part.transpose(1, 2).flatten(0, 1).to(wanted) for part in (query, key, value))
    options: dict[str, Any] = {}
    if "window_size" in kernel.options:
        options["window_size"] = (sliding_window - 1 if sliding_window else -1, 0)
    elif sliding_window:
        # Also where the row at hand is shorter: rows of training will be longer than the one that this is tried on.
        raise UnsuitedError("sliding windows with this torch's variable-length attention")
    else:
        options["is_causal"] = True
    if scaling is not None and "scale" in kernel.options:
        options["scale"] = scaling
    elif scaling is not None:
        query = query * (scaling * query.shape[-1] ** 0.5)
    if "enable_gqa" in kernel.options:
        options["enable_gqa"] = query.shape[1] != key.shape[1]
    elif query.shape[1] != key.shape[1] and not kernel.fewer_keys:
        groups = query.shape[1] // key.shape[1]
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    bounds = (cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q)
    return kernel.attend(query, key, value, *bounds, **options).unflatten(0, (rows, length)), None


def sample_bounds(batch: MicroBatch) -> dict[str, Any]:
    """What a packed row's samples are, under the names that transformers hands through to an attention."""
    longest = 1 << (batch.longest - 1).bit_length()  # few different numbers, for compiled layers
    return {"cu_seq_lens_q": batch.starts, "cu_seq_lens_k": batch.starts, "max_length_q": longest, "max_length_k": longest}


def uses_varlen(model: Any) -> bool:
    """Whether the model's attention is the one here."""
    return bool(getattr(base_of(model).config, "_attn_implementation", None) == VARLEN)


@contextmanager
def varlen_attention(model: Any, kernel: Kernel | None = None) -> Iterator[Callable[[], None]]:
    """Turn the attention here on. Yields what keeps it; else the model has its own again afterwards.

    Args:
        model: any of transformers'.
        kernel: None: torch's.
    """
    kernel = kernel or _kernel(next(base_of(model).parameters()).device)
    # With no mask registered under its name, transformers makes none, and does not wait for the GPU to look for packed rows.
    AttentionInterface.register(VARLEN, partial(_varlen_attention, kernel))
    configs = {id(m.config): m.config for m in base_of(model).modules() if hasattr(m, "config")}.values()
    before = [(config, config._attn_implementation) for config in configs if hasattr(config, "_attn_implementation")]
    kept: list[bool] = []
    for config, _ in before:
        config._attn_implementation = VARLEN
    try:
        yield lambda: kept.append(True)
    finally:
        if not kept:
            for config, name in before:
                config._attn_implementation = name
