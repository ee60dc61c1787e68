"""4-bit weights dequantized to 16 or 32 bits by one Triton kernel, where bitsandbytes needs three.

A thread takes words of 8 weights. It computes in float32, product by product, as bitsandbytes does: the numbers are the
same.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

WEIGHTS = 8
"""Weights in a word of 32 bits."""

BLOCK, WARPS = 1024, 4
"""Words of a program, and its warps: the fastest of 15 such pairs on an H100, for 14,336 x 4,096 weights; on an H200 within 5 %
of the fastest."""


@triton.jit  # type: ignore[untyped-decorator]
def _unpack(  # type: ignore[no-untyped-def]
    words, table, scales, scale_table, scale_scales, offset, weights, size,
    WORDS: tl.constexpr, GROUP: tl.constexpr, NESTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * BLOCK
    places = first + tl.arange(0, BLOCK)
    inside = places < size
    word = tl.load(words + places, mask=inside, other=0)
    scale_at = places // WORDS
    scale = tl.load(scales + scale_at, mask=inside, other=0)
    if NESTED:
        scale = tl.load(scale_table + scale.to(tl.int32)) * tl.load(scale_scales + scale_at // GROUP, mask=inside, other=0)
        scale = scale + tl.load(offset)
    number = tl.arange(0, 8)
    shift = number // 2 * 8 + (1 - number % 2) * 4  # the first of two weights in a byte is in its upper half
    code = (word[:, None] >> shift[None, :]) & 15
    values = tl.load(table + code) * scale[:, None]
    at = weights + first.to(tl.int64) * 8 + (tl.arange(0, BLOCK)[:, None] * 8 + number[None, :])
    tl.store(at, values.to(weights.dtype.element_ty), mask=inside[:, None])


def unpack(
    words: torch.Tensor, table: torch.Tensor, scales: torch.Tensor,
    nested: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
    per_scale: int, per_group: int, shape: Sequence[int], dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    """Dequantize a packed weight.

    Args:
        words: (weights / 8,) int32: two weights in a byte.
        table: (16,) float32, the value of each code.
        scales: one for each `per_scale` weights: float32; or uint8, codes of `nested`.
        nested: the value of each code of the scales, (256,) float32; the scale of each group of scales, float32; and what is
            added to each, a float32 scalar.
        per_scale: weights with one scale, a multiple of 8.
        per_group: scales with one scale.
        shape: of the weight.
        dtype: of the weight.
    """
    weights = torch.empty(tuple(shape), dtype=dtype, device=words.device)
    codes, groups, offset = nested if nested is not None else (scales, scales, scales)
    size = weights.numel() // WEIGHTS
    with torch.cuda.device(words.device):
        # Fusing a product and a sum would round once where bitsandbytes rounds twice.
        _unpack[(triton.cdiv(size, BLOCK),)](
            words, table, scales, codes, groups, offset, weights, size, WORDS=per_scale // WEIGHTS, GROUP=per_group,
            NESTED=nested is not None, BLOCK=BLOCK, num_warps=WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    return weights
