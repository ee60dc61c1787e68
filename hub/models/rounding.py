"""Rounding to fewer bits without a bias.

Training adds little to a weight, often less than half the step between two numbers of bfloat16 (0.4 % of the weight). The
nearest number is then the old one, for most weights of a matrix: what was learnt is lost, and lost in one direction. Rounded up
or down by chance, with probabilities that make the mean exact, the sum over a row keeps it (stochastic rounding: Gupta et al.
2015, arXiv 1502.02551).
"""

import zlib

import numpy as np
import torch

_AT_ONCE = 2**20
_DROPPED_BITS = {torch.bfloat16: 16, torch.float16: 13}
"""Bits of float32's mantissa that a type does not have."""


def rounded(tensor: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    """A float32 tensor in fewer bits, each number rounded up or down by chance so that its mean is exact.

    Numbers that the type has stay as they are. Infinite ones and NaN too.

    Args:
        tensor: float32, any shape, within the range of the type.
        dtype: bfloat16 or float16. Any other: rounded to the nearest.
        name: seeds the chance: equal names and shapes give equal results.
    """
    if tensor.dtype != torch.float32 or dtype not in _DROPPED_BITS:
        return tensor.to(dtype)
    draw = np.random.Generator(np.random.SFC64(zlib.crc32(name.encode())))
    out = torch.empty(tensor.shape, dtype=dtype)
    flat = tensor.detach().cpu().contiguous().view(-1)
    for part, result in zip(flat.split(_AT_ONCE), out.view(-1).split(_AT_ONCE), strict=True):
        _by_chance(part, result, draw)
    return out.to(tensor.device)


def _by_chance(part: torch.Tensor, result: torch.Tensor, draw: np.random.Generator) -> None:
    if not part.numel():
        return
    dtype = result.dtype
    dropped, largest = _DROPPED_BITS[dtype], torch.finfo(dtype).max
    chance = draw.integers(0, 1 << dropped, part.numel(), dtype=np.uint16 if dropped <= 16 else np.uint32)
    # Magnitude and sign are apart in a float, so this goes towards zero or away from it, whatever the sign.
    bits = part.numpy().view(np.uint32) + chance
    if dtype == torch.bfloat16:
        bits >>= np.uint32(16)
        result.copy_(torch.from_numpy(bits.astype(np.uint16).view(np.int16)).view(dtype))
    else:
        bits &= np.uint32(0xFFFFFFFF << dropped & 0xFFFFFFFF)
        found = torch.from_numpy(bits.view(np.float32))
        step = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        share = torch.from_numpy(chance.astype(np.float32)) / (1 << dropped)
        even = torch.floor(part.abs() / step + share) * step * part.sign()
        result.copy_(torch.where(part.abs() < torch.finfo(dtype).smallest_normal, even, found).clamp(-largest, largest))
    if not float(part.abs().max()) < largest:  # NaN too
        nearest = part.to(dtype)
        result.copy_(torch.where(torch.isfinite(part), result.clamp(-largest, largest), nearest))
