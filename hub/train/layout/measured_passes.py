"""Passes that measure the memory of training before the first step. They begin small, and none of them ends the run.

If a pass does not fit on one rank, it has failed on all, and fewer tokens are tried. Only where ranks wait for each other
within a pass (sharded weights) it can't be tried again in place: the run restarts in smaller micro-batches, as it does after a
step.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch

from hub.data.samples.sample import Sample
from hub.errors import NoMemoryError
from hub.parallel.group import max_over_ranks
from hub.system.memory import GpuMemory, Shortage, is_out_of_memory, shortage_of
from hub.train.attempts import on_all_ranks, too_little
from hub.train.layout.memory_budget import Line

FIRST_TOKENS = 256
"""Tokens of the first pass. One sample that is longer is taken all the same: the shortest."""

T = TypeVar("T")

Point = tuple[int, float]
"""Tokens of a pass, and the bytes that it took beyond the model and its gradients."""


class MeasuredPasses:
    """Measures forward and backward passes of a model.

    Args:
        memory: of the device.
        device: of the model.
        run_pass: runs a pass forward and backward over samples, and returns its number of tokens.
        choose: returns some samples of at most so many tokens: at least one. The same on all ranks.
        trained: weights that train. Their gradients are removed afterwards.
        recovers: whether a rank may stop in the middle of a pass, without another one waiting for it.
        longest: tokens of the longest sample, which no restart goes below.
        instead: what to type if a pass can't be tried again.
    """

    def __init__(
        self,
        memory: GpuMemory,
        device: torch.device,
        run_pass: Callable[[Sequence[Sample]], int],
        choose: Callable[[int], list[Sample]],
        trained: Sequence[torch.nn.Parameter],
        recovers: bool,
        longest: int,
        instead: str,
    ) -> None:
        self._memory, self._run_pass, self._choose, self._trained = memory, run_pass, choose, trained
        self._devices = [device] if device.type == "cuda" else []
        self._recovers, self._longest, self._instead = recovers, longest, instead

    def line(self, most: int, room: float) -> Line | None:
        """Measure passes of two sizes, as many tokens as fit but no more than asked. All ranks must call it.

        Args:
            most: tokens of the largest pass.
            room: bytes that are free for a pass.

        Returns:
            Bytes by tokens. None: not even the first pass fits.
        """
        try:
            with torch.random.fork_rng(self._devices):
                return self._line(most, room)
        finally:
            self._clear()

    def shortage(self, samples: Sequence[Sample]) -> Shortage | None:
        """Run one pass. Returns what was missing for it, on any rank; None if it fits. All ranks must call it."""
        try:
            with torch.random.fork_rng(self._devices):
                return self._try(partial(self._run_pass, samples), samples)[1]
        finally:
            self._clear()

    def _line(self, most: int, room: float) -> Line | None:
        few = self._choose(min(FIRST_TOKENS, most))
        first, _ = self._try(partial(self._first, few), few)
        if first is None:
            return None
        while True:
            samples = self._choose(most)
            tokens = _total(samples)
            if tokens <= first[0]:
                return Line.through([first])
            half = self._choose(tokens // 2)
            sizes = [half, samples] if _total(half) < tokens else [samples]
            if not max_over_ranks(float(first[1] / first[0] * tokens > room)):
                points, _ = self._try(partial(self._points, sizes), samples)
                if points is not None:
                    return Line.through(points)
            most = tokens // 2

    def _try(self, attempt: Callable[[], T], samples: Sequence[Sample]) -> tuple[T | None, Shortage | None]:
        """Try passes over so many samples, as `on_all_ranks`.

        Raises:
            ModelError: memory ran out, and the other ranks wait within the pass.
            NoMemoryError: the same, and fewer tokens are left to try.
        """
        if self._recovers:
            return on_all_ranks(attempt)
        try:
            return attempt(), None
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            shortage = shortage_of(error)
        tokens = _total(samples)
        smaller = max(self._longest, tokens // 2)
        ends = too_little(f"a pass over {tokens:,} tokens does not fit, with the weights sharded", shortage, self._instead)
        raise NoMemoryError(str(ends), smaller) if smaller < tokens else ends

    def _first(self, samples: Sequence[Sample]) -> Point:
        """The first pass: it compiles, allocates the gradients, and lets libraries allocate their buffers."""
        point = self._point(samples)
        gradients = sum(parameter.grad.nbytes for parameter in self._trained if parameter.grad is not None)
        return point[0], max(1.0, point[1] - gradients)

    def _points(self, sizes: Sequence[Sequence[Sample]]) -> list[Point]:
        self._run_pass(sizes[-1])  # what depends on the size compiles now
        return [self._point(samples) for samples in sizes]

    def _point(self, samples: Sequence[Sample]) -> Point:
        self._memory.reset_peak()
        before = self._memory.allocated()
        tokens = self._run_pass(samples)
        return tokens, float(self._memory.peak() - before)

    def _clear(self) -> None:
        for parameter in self._trained:
            parameter.grad = None
        self._memory.release()
        self._memory.reset_peak()


def _total(samples: Sequence[Sample]) -> int:
    return sum(map(len, samples))
