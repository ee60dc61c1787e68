"""A tiled MLP: a dense MLP that takes its tokens tile by tile if memory is short, since its inner tensors are a layer's widest.

In a compiled layer with activation checkpointing only one tile's activations exist at a time, forward and backward. The idea
is that of tiled MLPs for long rows (Arctic Long Sequence Training, arXiv 2506.13996).
"""

import torch

from hub.models.four_bit import is_4bit
from hub.models.patches import Edits, Patch
from hub.train.kernels.unpack import UnpackOnce

NUM_TILES = 4
"""Tiles of a micro-batch's tokens."""

MIN_TOKENS = 1024
"""A row with fewer tokens is never tiled."""

FREE_TOKENS = 8192
"""From so many tokens on, tiling costs no time. With fewer, the GPU finishes a tile before the next one is launched."""

NUM_WIDE_TENSORS = 3
"""Tensors of the MLP's inner width that its backward pass holds at a time: gate, up, and the gradient of their product."""


def tiles_from(spare_bytes: int, width: int, itemsize: int) -> int:
    """Return the number of tokens from which on MLPs are tiled, if fewer tokens may use so much spare memory.

    Args:
        spare_bytes: of the GPU.
        width: the MLP's inner features.
        itemsize: bytes of a number.
    """
    fit = spare_bytes * NUM_TILES // ((NUM_TILES - 1) * NUM_WIDE_TENSORS * width * itemsize)
    return max(MIN_TOKENS, min(FREE_TOKENS, fit))


class TiledMlp(Patch):
    """Tiles a layer's MLP in training. An MLP of another kind stays as it is.

    Args:
        layer: a decoder layer, whose MLP works on each token by itself.
        min_tokens: rows with fewer tokens are not tiled.
    """

    def __init__(self, layer: torch.nn.Module, min_tokens: int) -> None:
        self._layer, self._min_tokens = layer, min_tokens

    def apply(self, edits: Edits) -> None:
        mlp, min_tokens = getattr(self._layer, "mlp", None), self._min_tokens
        if not (isinstance(mlp, torch.nn.Module) and hasattr(mlp, "up_proj") and hasattr(mlp, "down_proj")):
            return
        plain = mlp.forward

        def forward(hidden: torch.Tensor, *more: object, **named: object) -> object:
            if not mlp.training or hidden.ndim != 3 or more or named:
                return plain(hidden, *more, **named)
            rows, tokens, _ = hidden.shape
            if rows * tokens < min_tokens or tokens < NUM_TILES:
                return plain(hidden)
            size = tokens // NUM_TILES
            tiles = hidden.split([size] * (NUM_TILES - 1) + [tokens - (NUM_TILES - 1) * size], dim=1)
            return torch.cat([plain(tile[:, None])[:, 0] for tile in tiles], dim=1)  # `TILE_DIMS` dimensions

        UnpackOnce([module for module in mlp.modules() if is_4bit(module)]).apply(edits)
        edits.assign(mlp, "forward", forward)
