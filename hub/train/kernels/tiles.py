"""A dense MLP that takes its tokens part by part, where memory is short: what lies within it is the widest of a layer.

In a layer that is compiled and recomputes its activations, the parts' activations are there one after the other, forward and
backward. The idea is that of tiled MLPs for long rows (Arctic Long Sequence Training, arXiv 2506.13996).
"""

from collections.abc import Callable
from typing import Any

import torch

from hub.models.four_bit import is_4bit
from hub.train.kernels.unpack import unpack_once

PARTS = 4
"""Of the tokens."""

LEAST_TOKENS = 1024
"""Fewer are never divided."""

WORTH_TOKENS = 8192
"""From so many on it costs no time. With fewer the GPU is done with a part before it is told what comes next."""

WIDE_TENSORS = 3
"""As wide as the MLP within, that its backward pass has at a time: gate, up, and the gradient of their product."""


def divides_from(spare_bytes: int, width: int, itemsize: int) -> int:
    """Tokens from which on MLPs should take them in parts, where so much memory is to spare for fewer that go at once.

    Args:
        spare_bytes: of the GPU.
        width: numbers of a token within the MLP.
        itemsize: bytes of a number.
    """
    fit = spare_bytes * PARTS // ((PARTS - 1) * WIDE_TENSORS * width * itemsize)
    return max(LEAST_TOKENS, min(WORTH_TOKENS, fit))


def divide(layer: torch.nn.Module, least_tokens: int) -> Callable[[], None]:
    """Let the layer's MLP take its tokens in parts in training; one of another kind stays as it is.

    Args:
        layer: a decoder layer, whose MLP works on each token by itself.
        least_tokens: fewer are not divided.

    Returns:
        What undoes it.
    """
    mlp = getattr(layer, "mlp", None)
    if not (isinstance(mlp, torch.nn.Module) and hasattr(mlp, "up_proj") and hasattr(mlp, "down_proj")):
        return lambda: None
    plain = mlp.forward

    def forward(hidden: torch.Tensor, *more: Any, **named: Any) -> Any:
        if not mlp.training or hidden.ndim != 3 or more or named:
            return plain(hidden, *more, **named)
        rows, tokens, _ = hidden.shape
        if rows * tokens < least_tokens or tokens < PARTS:
            return plain(hidden)
        size = tokens // PARTS
        parts = hidden.split([size] * (PARTS - 1) + [tokens - (PARTS - 1) * size], dim=1)
        return torch.cat([plain(part) for part in parts], dim=1)

    undone = [unpack_once(module) for module in mlp.modules() if is_4bit(module)]
    mlp.forward = forward

    def undo() -> None:
        mlp.forward = plain
        for step in undone:
            if step is not None:
                step()

    return undo
