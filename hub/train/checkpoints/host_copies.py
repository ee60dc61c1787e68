"""Copies of the training state in the host's memory, so that it can be written while training goes on.

The memory is taken once and kept between saves. For a GPU it is page-locked: the copy then runs beside the next forward and
backward pass, and only the optimizer's step, which changes what is copied, waits for it.
"""

import math
import mmap
import threading
import weakref
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch

BLOCK_BYTES = 2**28
"""Least memory that is taken and page-locked at a time; short, since the driver does nothing else meanwhile."""

ALIGNMENT = 64

Key = tuple[str, str]
"""Which file a tensor belongs to (`trainable`, `optimizer`, or `rest`: of the model alone), and its name there."""

Tensors = Mapping[Key, torch.Tensor]
Layout = list[tuple[Key, tuple[int, ...], torch.dtype]]


def num_bytes(tensors: Tensors) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


class HostCopies:
    """Memory on the host for copies of certain tensors, and the copies of the last save."""

    def __init__(self) -> None:
        self._layout: Layout | None = None
        self._views: dict[Key, torch.Tensor] = {}
        self._locked: list[weakref.finalize[..., np.ndarray[Any, Any]]] = []
        self._taking: threading.Thread | None = None
        self._problem: Exception | None = None
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._copied: dict[torch.device, torch.cuda.Event] = {}

    def take(self, tensors: Tensors) -> None:
        """Take memory for copies of these tensors, in a thread. What was there before is given back."""
        self.release()
        self._layout = layout = _layout(tensors)
        device = next((tensor.device for tensor in tensors.values() if tensor.is_cuda), None)
        self._taking = threading.Thread(target=self._take, args=(layout, device), name="host-copies", daemon=True)
        self._taking.start()

    def hold(self, tensors: Tensors) -> bool:
        """Whether there is memory for copies of these tensors. Waits for it when it is being taken."""
        if self._taking is not None:
            self._taking.join()
            self._taking = None
        return self._layout == _layout(tensors) and self._problem is None

    def copy(self, tensors: Tensors, at_once: Collection[Key]) -> dict[Key, torch.Tensor]:
        """Begin to copy.

        Args:
            tensors: `hold` is true for them.
            at_once: names of those that something else than the optimizer may change: the GPU copies them before it goes on.

        Returns:
            The copies. They are complete after `wait`.
        """
        devices = {tensor.device for tensor in tensors.values() if tensor.is_cuda}
        for device in devices:
            if device not in self._streams:
                self._streams[device] = torch.cuda.Stream(device)
            self._streams[device].wait_stream(torch.cuda.current_stream(device))
        for key, tensor in tensors.items():
            if tensor.is_cuda and key not in at_once:
                with torch.cuda.stream(self._streams[tensor.device]):
                    self._views[key].copy_(tensor, non_blocking=True)
            else:
                self._views[key].copy_(tensor, non_blocking=tensor.is_cuda)
        for device in devices:
            self._streams[device].wait_stream(torch.cuda.current_stream(device))
            self._copied[device] = self._streams[device].record_event(torch.cuda.Event(blocking=True))
        return dict(self._views)

    def before_change(self, *ignored: object) -> None:
        """Let what the GPU does next wait for the copies, not this program. A hook for the optimizer's step."""
        for device, event in self._copied.items():
            torch.cuda.current_stream(device).wait_event(event)

    def wait(self) -> None:
        """Wait until the copies are complete. May be called in another thread."""
        for event in self._copied.values():
            event.synchronize()

    def release(self) -> None:
        """Give the memory back."""
        if self._taking is not None:
            self._taking.join()
        self.wait()
        self._copied.clear()
        for unlock in self._locked:
            unlock()
        self._locked.clear()
        self._views.clear()
        self._layout = self._taking = self._problem = None

    def _take(self, layout: Layout, device: torch.device | None) -> None:
        try:
            for block in _blocks(layout):
                size = sum(_aligned(_length(shape, dtype)) for _, shape, dtype in block)
                # A mapping of its own begins at a page, as page-locking needs it.
                pages = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                memory = np.frombuffer(pages, np.uint8)
                torch.from_numpy(memory).zero_()  # the pages are there from now on, not only at the first save
                if device is not None:
                    with torch.cuda.device(device):
                        locked = torch.cuda.cudart().cudaHostRegister(memory.ctypes.data, memory.nbytes, 0)
                    # Where it can't be locked the copy still is right, only slower.
                    if int(locked) == 0:
                        # Memory that is given back while it is locked corrupts what the program keeps there next: copies from
                        # it to a GPU would no longer wait. So it is unlocked at the latest when nothing refers to it.
                        self._locked.append(weakref.finalize(memory, _unlock, memory.ctypes.data))
                        self._locked[-1].atexit = False
                start = 0
                for key, shape, dtype in block:
                    length = _length(shape, dtype)
                    # Each a storage of its own: savers take tensors in one storage for tied weights.
                    view = torch.from_numpy(memory[start : start + length]).view(dtype) if length else torch.empty(0)
                    self._views[key] = view.to(dtype).view(shape)
                    start += _aligned(length)
        except Exception as error:
            self._problem = error


def _unlock(address: int) -> None:
    torch.cuda.cudart().cudaHostUnregister(address)


def _layout(tensors: Tensors) -> Layout:
    return [(key, tuple(tensor.shape), tensor.dtype) for key, tensor in tensors.items()]


def _length(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return int(math.prod(shape) * dtype.itemsize)


def _aligned(length: int) -> int:
    return -(-length // ALIGNMENT) * ALIGNMENT


def _blocks(layout: Layout) -> list[Layout]:
    """The tensors in groups of at least `BLOCK_BYTES`. None is cut: a copy into two locked pieces is refused."""
    blocks: list[Layout] = [[]]
    size = 0
    for item in layout:
        if size >= BLOCK_BYTES:
            blocks.append([])
            size = 0
        blocks[-1].append(item)
        size += _aligned(_length(*item[1:]))
    return blocks
