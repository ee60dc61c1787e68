"""A GPU's memory, simulated on a CPU: it counts the tensors that live, and runs out where a test asks for it."""

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hub.system.memory import GIB
from hub.train.kernels.offload import ActivationOffload
from hub.train.layout import activations, measured_passes

TOKENS = 512
"""Tokens of the largest pass that measures: a CPU is busy with fewer than a GPU."""


class SimulatedMemory(TorchDispatchMode):
    """Counts each storage that an operation makes, as an allocation. Weights that were loaded before are not counted.

    It has the methods of `hub.system.memory.GpuMemory`.

    Args:
        limit: bytes that there are.
        fails: whether an allocation fails whatever is free, by its number from 1 on.
    """

    def __init__(self, limit: float = math.inf, fails: Callable[[int], bool] = lambda number: False) -> None:
        super().__init__()
        self.limit, self.fails = limit, fails
        self.num_allocations = self.num_failures = 0
        self._now = self._most = 0
        self._sizes: dict[int, int] = {}
        self._is_paused = False

    def allowed(self) -> float:
        return min(self.limit, 1024.0 * GIB)

    def free(self) -> float:
        return self.allowed() - self._now

    def allocated(self) -> int:
        return self._now

    def peak(self) -> int:
        return self._most

    def reset_peak(self) -> None:
        self._most = self._now

    def release(self) -> None:
        pass

    @contextmanager
    def on(self) -> Iterator[None]:
        """Within it the device is a GPU to what measures memory, and this is its memory. What is offloaded is not counted."""

        @contextmanager
        def elsewhere(*_) -> Iterator[None]:
            self._is_paused, before = True, self._is_paused
            try:
                yield
            finally:
                self._is_paused = before

        with (
            mock.patch.object(activations, "memory_of", return_value=self),
            mock.patch.object(ActivationOffload, "_on_copy_stream", elsewhere),
            mock.patch.object(activations, "ENOUGH_TOKENS", TOKENS),
            mock.patch.object(measured_passes, "FIRST_TOKENS", TOKENS // 4),
            self,
        ):
            yield

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if not self._is_paused:
            given: set[int] | None = None
            for tensor in tree_leaves(found):
                if not isinstance(tensor, torch.Tensor) or tensor.is_meta or tensor.device.type == "meta":
                    continue
                if (key := tensor.untyped_storage()._cdata) in self._sizes:
                    continue
                if given is None:
                    leaves = tree_leaves((args, kwargs))
                    given = {one.untyped_storage()._cdata for one in leaves if isinstance(one, torch.Tensor)}
                if key not in given:
                    self._allocate(tensor.untyped_storage())
        return found

    def _allocate(self, storage: torch.UntypedStorage) -> None:
        size = int(storage.nbytes())
        if not size:
            return
        self.num_allocations += 1
        if self._now + size > self.limit or self.fails(self.num_allocations):
            self.num_failures += 1
            free = max(0.0, self.limit - self._now) if math.isfinite(self.limit) else 0.0
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {size / 2**10:.2f} KiB. GPU 0 has a total capacity of 1.00 GiB "
                f"of which {free / 2**10:.2f} KiB is free."
            )
        self._sizes[storage._cdata] = size
        self._now += size
        self._most = max(self._most, self._now)
        weakref.finalize(storage, self._freed, storage._cdata)

    def _freed(self, key: int) -> None:
        self._now -= self._sizes.pop(key)
