"""CPU copies of the training state, so that a checkpoint can be written while training continues.

The memory is allocated once and reused between saves. For a GPU it is pinned: the copy then overlaps with the next forward and
backward pass. Only the optimizer step, which changes the copied tensors, waits for it.
"""

import math
import mmap
import threading
import weakref
from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt
import torch

BLOCK_BYTES = 2**28
"""Minimum memory allocated and pinned at a time. Small, since pinning blocks the driver."""

ALIGNMENT = 64

Key = tuple[str, str]
"""File that a tensor belongs to (`trainable`, `optimizer`, or `rest`: only in the saved model), and its name there."""

Tensors = Mapping[Key, torch.Tensor]
Layout = list[tuple[Key, tuple[int, ...], torch.dtype]]


def num_bytes(tensors: Tensors) -> int:
    """Total size of tensors in bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


class CpuCopies:
    """CPU memory for copies of certain tensors, and the copies of the last save."""

    def __init__(self) -> None:
        self._layout: Layout | None = None
        self._views: dict[Key, torch.Tensor] = {}
        self._pinned: list[weakref.finalize[[int], npt.NDArray[np.uint8]]] = []
        self._allocating: threading.Thread | None = None
        self._problem: Exception | None = None
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._copied: dict[torch.device, torch.cuda.Event] = {}

    def allocate(self, tensors: Tensors) -> None:
        """Allocate memory for copies of these tensors, in a thread. Frees earlier memory first."""
        self.release()
        self._layout = layout = _layout(tensors)
        device = next((tensor.device for tensor in tensors.values() if tensor.is_cuda), None)
        self._allocating = threading.Thread(target=self._allocate, args=(layout, device), name="cpu-copies", daemon=True)
        self._allocating.start()

    def fits(self, tensors: Tensors) -> bool:
        """Whether memory for copies of these tensors is allocated. Waits for an allocation in progress."""
        if self._allocating is not None:
            self._allocating.join()
            self._allocating = None
        return self._layout == _layout(tensors) and self._problem is None

    def copy(self, tensors: Tensors, at_once: Collection[Key]) -> dict[Key, torch.Tensor]:
        """Start to copy.

        Args:
            tensors: `fits` is true for them.
            at_once: keys of tensors that may change before the optimizer step: the GPU copies them before later work.

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
        """Make later GPU work wait for the copies, without blocking the CPU. A hook for the optimizer step."""
        for device, event in self._copied.items():
            torch.cuda.current_stream(device).wait_event(event)

    def wait(self) -> None:
        """Wait until the copies are complete. May be called from another thread."""
        for event in self._copied.values():
            event.synchronize()

    def release(self) -> None:
        """Free the memory."""
        if self._allocating is not None:
            self._allocating.join()
        self.wait()
        self._copied.clear()
        for unpin in self._pinned:
            unpin()
        self._pinned.clear()
        self._views.clear()
        self._layout = self._allocating = self._problem = None

    def _allocate(self, layout: Layout, device: torch.device | None) -> None:
        try:
            for block in _blocks(layout):
                size = sum(_aligned(_length(shape, dtype)) for _, shape, dtype in block)
                # A separate mapping starts at a page boundary, which pinning needs.
                pages = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                memory = np.frombuffer(pages, np.uint8)
                torch.from_numpy(memory).zero_()  # touches the pages now, not at the first save
                if device is not None:
                    with torch.cuda.device(device):
                        status = torch.cuda.cudart().cudaHostRegister(memory.ctypes.data, memory.nbytes, 0)
                    # If it can't be pinned, the copy is still correct, only slower.
                    if int(status) == 0:
                        # Freeing pinned memory corrupts whatever is allocated there next: its copies to a GPU would no longer
                        # wait. So it is unpinned at the latest when nothing refers to it.
                        self._pinned.append(weakref.finalize(memory, _unpin, memory.ctypes.data))
                        self._pinned[-1].atexit = False
                start = 0
                for key, shape, dtype in block:
                    length = _length(shape, dtype)
                    # A separate storage for each: savers take tensors that share a storage for tied weights.
                    view = torch.from_numpy(memory[start : start + length]).view(dtype) if length else torch.empty(0)
                    self._views[key] = view.to(dtype).view(shape)
                    start += _aligned(length)
        except Exception as error:
            self._problem = error


def _unpin(address: int) -> None:
    torch.cuda.cudart().cudaHostUnregister(address)


def _layout(tensors: Tensors) -> Layout:
    return [(key, tuple(tensor.shape), tensor.dtype) for key, tensor in tensors.items()]


def _length(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return int(math.prod(shape) * dtype.itemsize)


def _aligned(length: int) -> int:
    return -(-length // ALIGNMENT) * ALIGNMENT


def _blocks(layout: Layout) -> list[Layout]:
    """The tensors in groups of at least `BLOCK_BYTES`. No tensor is cut: CUDA refuses a copy into two pinned pieces."""
    blocks: list[Layout] = [[]]
    size = 0
    for item in layout:
        if size >= BLOCK_BYTES:
            blocks.append([])
            size = 0
        blocks[-1].append(item)
        size += _aligned(_length(*item[1:]))
    return blocks
