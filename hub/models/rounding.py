"""Rounding to fewer bits without a bias.

Training adds little to a weight, often less than half the step between two numbers of bfloat16 (0.4 % of the weight). The
nearest number is then the old one, for most weights of a matrix: what was learnt is lost, and lost in one direction. Rounded up
or down by chance, with probabilities that make the mean exact, the sum over a row keeps it (stochastic rounding: Gupta et al.
2015, arXiv 1502.02551).
"""

import zlib

import torch

_AT_ONCE = 2**20
_SMALLEST_NORMAL = {torch.float16: 2.0**-14}
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
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    out = torch.empty(tensor.shape, dtype=dtype)
    parts = zip(tensor.contiguous().view(-1).split(_AT_ONCE), out.view(-1).split(_AT_ONCE), strict=True)
    for part, result in parts:
        result.copy_(_by_chance(part, dtype, generator))
    return out


def _by_chance(part: torch.Tensor, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    dropped = _DROPPED_BITS[dtype]
    bits = part.view(torch.int32)
    chance = torch.randint(1 << dropped, bits.shape, generator=generator, dtype=torch.int32)
    # Magnitude and sign are apart, so this goes towards zero or away from it, whatever the sign.
    found = (bits + chance).bitwise_and_(-(1 << dropped)).view(torch.float32)
    if (least := _SMALLEST_NORMAL.get(dtype)) is not None:
        step = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        even = torch.floor(part.abs() / step + chance.float() / (1 << dropped)) * step * part.sign()
        found = torch.where(part.abs() < least, even, found)
    largest = torch.finfo(dtype).max
    found = found.clamp_(-largest, largest).to(dtype)
    finite = torch.isfinite(part)
    return found if finite.all() else torch.where(finite, found, part.to(dtype))
