"""Cross entropy of a chunk of logits and its gradient in one kernel for NVIDIA's and AMD's GPUs.

One program goes over a row of logits twice: for the logarithm of the summed exponentials, each lane with a maximum of its own
(Milakov and Gimelshein, "Online normalizer calculation for softmax", arXiv 1805.02867), and to put the gradient in the logits'
place. It computes in float32. Some models scale logits or bound them softly: the kernel does so as it reads them.
"""

import torch
import triton
import triton.language as tl

from hub.train.kernels.logit_map import AS_THEY_ARE, LogitMap

BLOCK, WARPS = 16384, 32
"""Logits that a program reads at a time, and its warps: of seven such pairs the fastest at 128,256 logits a row on an H100."""


@triton.jit  # type: ignore[untyped-decorator]
def _mapped(values, scale, cap, SCALED: tl.constexpr, CAPPED: tl.constexpr):  # type: ignore[no-untyped-def]
    if CAPPED:
        return cap * (2 * tl.sigmoid(2 * values * scale / cap) - 1)  # cap * tanh(values * scale / cap)
    if SCALED:
        return values * scale
    return values


@triton.jit  # type: ignore[untyped-decorator]
def _in_place(  # type: ignore[no-untyped-def]
    logits, targets, weights, losses, stride, size, scale, cap,
    WEIGHTED: tl.constexpr, SCALED: tl.constexpr, CAPPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    first = logits + row * stride
    target = tl.load(targets + row)
    of_target = _mapped(tl.load(first + target).to(tl.float32), scale, cap, SCALED, CAPPED)
    highest = tl.full([BLOCK], -1e30, tl.float32)
    summed = tl.zeros([BLOCK], tl.float32)
    for start in range(0, size, BLOCK):
        places = start + tl.arange(0, BLOCK)
        read = tl.load(first + places, mask=places < size, other=0.0).to(tl.float32)
        values = tl.where(places < size, _mapped(read, scale, cap, SCALED, CAPPED), float("-inf"))
        higher = tl.maximum(highest, values)
        summed = summed * tl.exp(highest - higher) + tl.exp(values - higher)
        highest = higher
    top = tl.max(highest, 0)
    total = top + tl.log(tl.sum(summed * tl.exp(highest - top), 0))
    tl.store(losses + row, total - of_target)
    if WEIGHTED:
        weight = tl.load(weights + row)
    for start in range(0, size, BLOCK):
        places = start + tl.arange(0, BLOCK)
        read = tl.load(first + places, mask=places < size, other=0.0).to(tl.float32)
        values = _mapped(read, scale, cap, SCALED, CAPPED)
        gradient = tl.exp(values - total) - tl.where(places == target, 1.0, 0.0)
        if WEIGHTED:
            gradient *= weight
        if CAPPED:
            gradient *= 1 - (values / cap) * (values / cap)
        if SCALED:
            gradient *= scale
        tl.store(first + places, gradient.to(logits.dtype.element_ty), mask=places < size)


def losses_and_gradient(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None, logit_map: LogitMap = AS_THEY_ARE
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy of each row of mapped logits, and the gradient of their weighted sum, which takes the logits' place.

    Args:
        logits: (n, V) in float32, bfloat16 or float16, rows without gaps. Overwritten.
        targets: (n,) int64 below V.
        weights: (n,) float32; None: all are 1.
        logit_map: applied to each logit.

    Returns:
        (n,) float32 in nats, without the weights; (n, V).
    """
    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    weighted = weights is not None
    read = weights.contiguous() if weights is not None else losses
    sizes = (logits.stride(0), logits.shape[1])
    scaled, capped = logit_map.scale != 1, logit_map.cap is not None
    numbers = (float(logit_map.scale), float(logit_map.cap or 0.0))
    with torch.cuda.device(logits.device):
        _in_place[(len(logits),)](
            logits, targets, read, losses, *sizes, *numbers,
            WEIGHTED=weighted, SCALED=scaled, CAPPED=capped, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
    return losses, logits
