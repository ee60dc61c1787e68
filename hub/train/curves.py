"""The curves of a run as its metrics.jsonl has them: cleaned, with levels and their noise. Nothing here imports torch."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
SIGMA_OF_MAD = 1.4826
"""Standard deviation of a normal distribution by its median absolute deviation."""


@dataclass(frozen=True)
class Level:
    """The mean of a piece of a curve, and its standard error."""

    mean: float
    error: float

    def __str__(self) -> str:
        return f"{self.mean:.4g} ± {self.error:.1g}"


@dataclass(frozen=True)
class Curves:
    """What was logged, without the steps that were skipped."""

    steps: Numbers
    losses: Numbers
    norms: Numbers
    rates: Numbers
    epochs: Numbers
    """Passes over the data after each step. NaN: not known."""

    held_out_steps: Numbers
    """0 is before training."""

    held_out: Numbers
    num_skipped: int

    @cached_property
    def noise(self) -> float:
        """Standard deviation of the loss of a single step around its trend, from differences of neighbors."""
        return _spread(np.diff(self.losses)) / math.sqrt(2)

    @cached_property
    def held_out_noise(self) -> float:
        """Standard deviation of a held-out loss around its trend, from second differences. 0: too few evaluations to tell."""
        return _spread(np.diff(self.held_out, 2)) / math.sqrt(6) if len(self.held_out) >= 5 else 0.0

    def level(self, begin: int, end: int) -> Level:
        """The training loss over the logged steps of number `begin` to `end` (excluded), which must be at least one."""
        numbers = range(len(self.losses))[begin:end]
        piece = self.losses[numbers.start : numbers.stop]
        near = self.losses[max(0, numbers.start - 10) : numbers.stop + 10]  # the noise is larger where the loss is
        return Level(float(piece.mean()), _spread(np.diff(near)) / math.sqrt(2 * len(piece)))

    @property
    def window(self) -> int:
        """Logged steps over which a level is taken: a tenth of all, at least 3."""
        return max(3, len(self.losses) // 10)

    @property
    def start(self) -> Level:
        """The training loss of the first steps. Fewer than at the end, since it falls fastest there."""
        return self.level(0, max(3, len(self.losses) // 20))

    @property
    def end(self) -> Level:
        """The training loss of the last steps."""
        return self.level(-self.window, len(self.losses))

    def level_until(self, step: float) -> Level:
        """The training loss up to a step. Step 0: of the first steps."""
        last = int(np.searchsorted(self.steps, step, side="right"))
        return self.level(max(0, last - self.window), last) if last else self.start

    def epoch_at(self, step: float) -> float | None:
        """Passes over the data after a step. None: not known."""
        place = int(np.searchsorted(self.steps, step, side="right")) - 1
        value = float(self.epochs[place]) if place >= 0 else math.nan
        return value if math.isfinite(value) else None


def read_curves(lines: Iterable[Mapping[str, Any]]) -> Curves:
    """The curves of the lines of metrics.jsonl.

    Args:
        lines: as `hub.run.read_metrics` gives them. Where a resumed run has logged a step again, the later line counts.
    """
    kept = current_lines(lines)
    good = [line for line in kept if "skipped" not in line and math.isfinite(number(line, "loss"))]
    before = [number(line, "eval_loss_before") for line in kept if "eval_loss_before" in line][:1]
    held_out = [(0.0, value) for value in before] + [(number(line, "step"), number(line, "eval_loss")) for line in kept]
    measured = np.array([pair for pair in held_out if math.isfinite(pair[1])], dtype=np.float64).reshape(-1, 2)
    return Curves(
        steps=_column(good, "step"),
        losses=_column(good, "loss"),
        norms=_column(good, "grad_norm"),
        rates=_column(good, "learning_rate"),
        epochs=_column(good, "epoch"),
        held_out_steps=measured[:, 0],
        held_out=measured[:, 1],
        num_skipped=len(kept) - len(good),
    )


def _column(lines: Iterable[Mapping[str, Any]], name: str) -> Numbers:
    return np.array([number(line, name) for line in lines], dtype=np.float64)


def current_lines(lines: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The lines in the order of their steps, without those that a resumed run has replaced."""
    kept: list[Mapping[str, Any]] = []
    for line in lines:
        step = number(line, "step")
        if not math.isfinite(step):
            continue
        while kept and number(kept[-1], "step") >= step:
            kept.pop()
        kept.append(line)
    return kept


def number(line: Mapping[str, Any], name: str) -> float:
    """A value of a line. NaN: it is not there, or no number. metrics.jsonl has NaN and infinity as texts."""
    try:
        return float(line.get(name, math.nan))
    except (TypeError, ValueError):
        return math.nan


def _spread(values: Sequence[float] | Numbers) -> float:
    """A robust standard deviation around 0."""
    return SIGMA_OF_MAD * float(np.median(np.abs(values))) if len(values) else 0.0
