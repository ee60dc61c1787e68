"""How far references are from what was computed again: rounding, or another model."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from hub.data.samples.sample import Sample

MOST_MOVED = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}
"""Nats per token by which references may differ on average when they are computed again: other micro-batches round differently.
Another model moves all answers, rounding moves some of few tokens."""

MOST_OF_ONE = 20
"""Times of it by which a single one may. In SmolLM2 other batches moved one of 80 short answers by 0.1 in bfloat16, their mean
by 0.004."""


class Moved(NamedTuple):
    """How far references are from what was computed again, in nats a token."""

    mean: float
    most: float
    sample: Sample | None
    """The one that is farthest off."""

    def too_far(self, dtype: torch.dtype) -> str | None:
        """What is wrong, as `off by 3.1 nats a token (allowed 0.05)`. None: rounding.

        Args:
            dtype: type of the arithmetic.
        """
        allowed = MOST_MOVED.get(dtype, MOST_MOVED[torch.bfloat16])
        if not self.mean <= allowed:
            return f"off by {self.mean:.2g} nats a token on average (allowed {allowed:g})"
        if not self.most <= MOST_OF_ONE * allowed:
            return f"off by {self.most:.2g} nats a token (allowed {MOST_OF_ONE * allowed:g})"
        return None


def moved(pairs: Sequence[tuple[Sample, float]]) -> Moved:
    """How far references are off.

    Args:
        pairs: samples, and by how many nats the sum over the loss tokens of each is off.
    """
    each = [abs(apart) / max(1, int(sample.loss_mask[1:].sum())) for sample, apart in pairs]
    if not each:
        return Moved(0.0, 0.0, None)
    farthest = max(range(len(each)), key=lambda place: (math.isnan(each[place]), each[place]))
    return Moved(sum(each) / len(each), each[farthest], pairs[farthest][0])
