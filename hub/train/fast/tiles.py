"""A dense MLP that takes its tokens part by part, where memory is short: what lies within it is the widest of a layer.

In a layer that is compiled and recomputes its activations, the parts' activations are there one after the other, forward and
backward. The idea is that of tiled MLPs for long rows (Arctic Long Sequence Training, arXiv 2506.13996).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

TILES = 4
"""Parts of the tokens."""

LEAST_TOKENS = 16
"""Fewer are not divided."""


def divide(layer: torch.nn.Module) -> Callable[[], None]:
    """Let the layer's MLP take its tokens in parts in training; one of another kind stays as it is.

    Args:
        layer: a decoder layer, whose MLP works on each token by itself.

    Returns:
        What undoes it.
    """
    mlp = getattr(layer, "mlp", None)
    if not (isinstance(mlp, torch.nn.Module) and hasattr(mlp, "up_proj") and hasattr(mlp, "down_proj")):
        return lambda: None
    plain = mlp.forward

    def forward(hidden: torch.Tensor, *more: Any, **named: Any) -> Any:
        tokens = hidden.shape[1]
        if not mlp.training or tokens < LEAST_TOKENS or more or named:
            return plain(hidden, *more, **named)
        size = tokens // TILES
        parts = hidden.split([size] * (TILES - 1) + [tokens - (TILES - 1) * size], dim=1)
        return torch.cat([plain(part) for part in parts], dim=1)

    quantised = [module for module in mlp.modules() if _is_4bit(module)]
    for module in quantised:
        _unpack_once(module)
    mlp.forward = forward

    def undo() -> None:
        mlp.forward = plain
        for module in quantised:
            del module.forward

    return undo


def _is_4bit(module: torch.nn.Module) -> bool:
    """Whether it is a layer of bitsandbytes that nothing has changed."""
    known = type(module).__name__ == "Linear4bit" and type(module).__module__.startswith("bitsandbytes")
    return known and "forward" not in vars(module) and getattr(module.weight, "quant_state", None) is not None


def _unpack_once(layer: Any) -> None:
    """Let a 4-bit layer bring its weight to 16 bits in an operation of its own, which a compiler does once for all parts.

    bitsandbytes' own product does it anew for each.
    """
    from bitsandbytes.functional import dequantize_4bit

    def forward(x: torch.Tensor) -> torch.Tensor:
        wanted = layer.compute_dtype or x.dtype
        weight = dequantize_4bit(layer.weight, layer.weight.quant_state)
        bias = None if layer.bias is None else layer.bias.to(wanted)
        return F.linear(x.to(wanted), weight.to(wanted), bias).to(x.dtype)

    layer.forward = forward
