"""Cross entropy of a chunk of logits and its gradient in one kernel for NVIDIA's and AMD's GPUs.

One program goes over a row of logits twice: for the logarithm of the summed exponentials, each lane with a maximum of its own
(Milakov and Gimelshein, "Online normalizer calculation for softmax", arXiv 1805.02867), and to put the gradient in the logits'
place. It computes in float32.
"""

import torch
import triton
import triton.language as tl

BLOCK, WARPS = 16384, 32
"""Logits that a program reads at a time, and its warps: of seven such pairs the fastest at 128,256 logits a row on an H100."""


@triton.jit  # type: ignore[untyped-decorator]
def _in_place(logits, targets, weights, losses, stride, size, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    first = logits + row * stride
    target = tl.load(targets + row)
    of_target = tl.load(first + target).to(tl.float32)
    highest = tl.full([BLOCK], -1e30, tl.float32)
    summed = tl.zeros([BLOCK], tl.float32)
    for start in range(0, size, BLOCK):
        places = start + tl.arange(0, BLOCK)
        values = tl.load(first + places, mask=places < size, other=float("-inf")).to(tl.float32)
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
        values = tl.load(first + places, mask=places < size, other=float("-inf")).to(tl.float32)
        gradient = tl.exp(values - total) - tl.where(places == target, 1.0, 0.0)
        if WEIGHTED:
            gradient *= weight
        tl.store(first + places, gradient.to(logits.dtype.element_ty), mask=places < size)


def losses_and_gradient(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy of each row, and the gradient of their weighted sum, which takes the logits' place.

    Args:
        logits: (n, V) in float32, bfloat16 or float16, rows without gaps. Overwritten.
        targets: (n,) int64 below V.
        weights: (n,) float32; None: all are 1.

    Returns:
        (n,) float32 in nats, without the weights; (n, V).
    """
    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    weighted = weights is not None
    read = weights.contiguous() if weights is not None else losses
    sizes = (logits.stride(0), logits.shape[1])
    with torch.cuda.device(logits.device):
        _in_place[(len(logits),)](logits, targets, read, losses, *sizes, WEIGHTED=weighted, BLOCK=BLOCK, num_warps=WARPS)
    return losses, logits
