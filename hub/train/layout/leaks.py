"""What packed samples do to each other, as numbers, and which of these are rounding.

What is measured is what training lowers: log-probabilities of the samples' own tokens, here as fractions of their spread
(their standard deviation), which makes models of any scale comparable.

In float32 both effects are at most 1e-5 in a model that isolates, and at least 5e-4 in one that does not (tiny models of 80
architectures, random weights of 0.02 and 0.1), so `FLOAT32_LIMIT` stands between them.

In half precision rounding is as large as a small leak, so the row is its own yardstick:

- No token sees a later one. So the effect of a changed sample on those *ahead* of it, and of running the row again, is rounding
  (experts' and 8-bit layers' products depend on all rows, some sums have no fixed order). If there is none, a dense
  computation does not depend on what other rows hold, and samples *behind* must keep their log-probabilities bit for bit.
  If there is some, they may change a few times as much.
- The first sample of a row has nothing ahead of it. So what separates it from itself alone is rounding, and the others may be a
  few times as far apart. Wrong positions or a lost mask are further.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from hub.data.samples.sample import Sample

FLOAT32_LIMIT = 1e-4
"""Largest effect that passes as rounding in float32, as a fraction of the spread."""

LEAST_LIMIT = {torch.bfloat16: 2e-2, torch.float16: 3e-3}
"""Effect that always passes as rounding in half precision, where there is rounding: five times the spacing of its numbers."""

MOST_LIMIT = 0.2
"""Effect that never passes as rounding, whatever the rounding is."""

NOISE_FACTOR = 4.0
"""Largest effect over the rounding that is measured: that is a maximum of few samples."""

LEAST_SPREAD = 1e-3
"""Smallest spread of log-probabilities, in nats. Those of a model that is initialized with zeros are all alike."""

Row = Callable[[Sequence[Sample]], list[torch.Tensor]]
"""Function of samples: runs them as one micro-batch, and returns each one's `log_probabilities`."""


@dataclass(frozen=True)
class Leak:
    """An effect of packing on samples, as a fraction of the spread of their log-probabilities."""

    measured: float
    allowed: float
    problem: str = ""
    """Why nothing was measured: what the model raised."""

    @property
    def passes(self) -> bool:
        """Whether it is rounding."""
        return self.measured <= self.allowed

    @property
    def badness(self) -> float:
        """The effect over what is allowed."""
        return self.measured / max(self.allowed, 1e-30)

    def __str__(self) -> str:
        return self.problem or f"measured leak {self.measured:.1e}, allowed {self.allowed:.1e}"


@dataclass(frozen=True)
class Effects:
    """Root mean squares of changes of log-probabilities over their spread, each the greatest of all samples."""

    behind: float
    """On the samples behind a changed one."""

    coupling: float
    """On the samples ahead of a changed one, and on all when the same row runs again. It can only be rounding."""

    apart: float
    """Between a sample in the row and alone."""

    rounding: float
    """Between the first sample in the row and alone. It can only be rounding."""

    unchanged: int
    """How many of `compared` kept all bits."""

    compared: int

    def changed(self, dtype: torch.dtype, rows: bool = False) -> Leak:
        """Judge the effect of a changed sample on others.

        Args:
            dtype: of the arithmetic.
            rows: whether each sample has a row of its own: then none is ahead of another, and `coupling` says nothing.
        """
        if dtype not in LEAST_LIMIT:
            return Leak(self.behind, FLOAT32_LIMIT)
        if not rows and not self.coupling:
            return Leak(self.behind, 0.0)
        return Leak(self.behind, _limit(dtype, max(self.coupling, self.rounding)))

    def packed(self, dtype: torch.dtype) -> Leak:
        """Judge the difference between samples in the row and alone."""
        return Leak(self.apart, _limit(dtype, self.rounding))


def _limit(dtype: torch.dtype, rounding: float) -> float:
    if dtype not in LEAST_LIMIT:
        return FLOAT32_LIMIT
    return min(MOST_LIMIT, max(LEAST_LIMIT[dtype], NOISE_FACTOR * rounding))


def log_probabilities(logits: torch.Tensor, sample: Sample) -> torch.Tensor:
    """Return the log-probability of each token of a sample but the first, in nats: (T - 1,) float64.

    Args:
        logits: of this sample, (at least T, vocabulary).
        sample: of T tokens.
    """
    ids = torch.from_numpy(sample.input_ids.astype(np.int64)).to(logits.device)
    return -F.cross_entropy(logits[: len(sample) - 1].float(), ids[1:], reduction="none").double()


def measure(
    row: Row, samples: Sequence[Sample], alone: Sequence[torch.Tensor], others: Mapping[int, Sample], repeat: bool
) -> Effects:
    """Measure what a row's samples do to each other.

    Args:
        row: runs samples as one micro-batch.
        samples: at least two.
        alone: their log-probabilities by plain calls of the model.
        others: what takes the place of a sample, of the same length, by its place. Each is a row of its own.
        repeat: whether to run the same row again.
    """
    spread = max(float(torch.cat(list(alone)).std()), LEAST_SPREAD)

    def effect(one: torch.Tensor, other: torch.Tensor) -> float:
        return float((one - other).square().mean().sqrt()) / spread if len(one) else 0.0

    packed = row(samples)
    coupling = [effect(a, b) for a, b in zip(packed, row(samples), strict=True)] if repeat else []
    behind: list[float] = []
    unchanged = compared = 0
    for place, other in others.items():
        found = row([*samples[:place], other, *samples[place + 1 :]])
        for number, (before, after) in enumerate(zip(packed, found, strict=True)):
            if number != place:
                (behind if number > place else coupling).append(effect(before, after))
                compared += 1
                unchanged += torch.equal(before, after)
    apart = [effect(a, b) for a, b in zip(packed, alone, strict=True)]
    return Effects(max(behind, default=0.0), max(coupling, default=0.0), max(apart), apart[0], unchanged, compared)
