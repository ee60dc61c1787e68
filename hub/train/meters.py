"""Measure training: counts of a step, tokens per second, loss spikes, memory."""

import resource
import sys
import time
from collections import deque
from collections.abc import Sequence

import torch

from hub.data.samples.mix import Mix
from hub.data.samples.sample import Unit
from hub.train.batch.collate import num_loss_tokens
from hub.train.batch.split import Step


def counts_of(step: Step, units: Sequence[Unit], mix: Mix) -> dict[str, float]:
    """Units and tokens of a step, the epoch after it, and the units of each source if there are several."""
    counts: dict[str, float] = {
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
    """Counts tokens and seconds of training steps. Evaluation and saving are excluded."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.tokens = 0
        self._begun = 0.0

    def begin(self) -> None:
        self._begun = time.perf_counter()

    def end(self, tokens: int) -> float:
        """End one step. Returns its tokens per second."""
        seconds = time.perf_counter() - self._begun
        self.seconds += seconds
        self.tokens += tokens
        return tokens / seconds if seconds else 0.0

    @property
    def tokens_per_second(self) -> float | None:
        return self.tokens / self.seconds if self.seconds else None


class SpikeMeter:
    """Detects a loss far above the previous ones."""

    WINDOW = 50
    MIN_LOSSES = 10

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=self.WINDOW)

    def is_spike(self, loss: float) -> bool:
        """Whether a loss is more than six standard deviations above the mean of the previous ones, and 1.5 times the mean."""
        is_spike = False
        if len(self._last) >= self.MIN_LOSSES:
            mean = sum(self._last) / len(self._last)
            deviation = (sum((x - mean) ** 2 for x in self._last) / len(self._last)) ** 0.5
            is_spike = loss > mean + 6 * deviation and loss > 1.5 * mean
        self._last.append(loss)
        return is_spike

    def state(self) -> list[float]:
        return list(self._last)

    def restore(self, state: list[float]) -> None:
        self._last.extend(state)


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory of this process: allocated by torch on a GPU, resident on a CPU. 1 GB = 2**30 bytes."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
