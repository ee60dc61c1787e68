"""What a step had, tokens per second, jumps of the loss and memory."""

import resource
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch

from hub.data.samples.mix import Mix
from hub.data.samples.sample import Unit
from hub.train.batch.collate import num_loss_tokens
from hub.train.batch.split import Step


def counts_of(step: Step, units: Sequence[Unit], mix: Mix) -> dict[str, Any]:
    """Samples and tokens of a step, the passes done after it, and the samples of each source where there are several."""
    counts: dict[str, Any] = {
        "num_samples": len(units),
        "num_tokens": sum(len(unit) for unit in units),
        "num_loss_tokens": sum(num_loss_tokens(sample) for unit in units for sample in unit.samples),
    }
    if mix.per_pass is not None:
        counts["epoch"] = round(step.epoch + (step.place + step.size) / mix.per_pass, 4)
    if len(mix.names) > 1:
        counts |= {f"num_samples.{name}": count for name, count in zip(mix.names, step.counts, strict=True)}
    return counts


class Meter:
    """Counts tokens over the seconds that are spent on training steps; evaluation and saving are left out."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.tokens = 0
        self._begun = 0.0

    def begin(self) -> None:
        self._begun = time.perf_counter()

    def end(self, tokens: int) -> float:
        """Close one step; returns its tokens per second."""
        seconds = time.perf_counter() - self._begun
        self.seconds += seconds
        self.tokens += tokens
        return tokens / seconds if seconds else 0.0

    @property
    def tokens_per_second(self) -> float | None:
        return self.tokens / self.seconds if self.seconds else None


class SpikeMeter:
    """Notices a loss that stands out from the last ones."""

    WINDOW = 50
    LEAST = 10

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=self.WINDOW)

    def is_spike(self, loss: float) -> bool:
        """Whether a loss lies six standard deviations, and half as much again, above the mean of those before it."""
        found = False
        if len(self._last) >= self.LEAST:
            mean = sum(self._last) / len(self._last)
            deviation = (sum((x - mean) ** 2 for x in self._last) / len(self._last)) ** 0.5
            found = loss > mean + 6 * deviation and loss > 1.5 * mean
        self._last.append(loss)
        return found

    def state(self) -> list[float]:
        return list(self._last)

    def restore(self, state: list[float]) -> None:
        self._last.extend(state)


def peak_memory_gb(device: torch.device) -> float:
    """Largest memory of this process so far: allocated by torch on a GPU, resident on a CPU. 1 GB = 2**30 bytes."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
