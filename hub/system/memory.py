"""CPU and GPU memory: what is free, what this process may use, and what an error says that memory ran out."""

import gc
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

GIB = 2**30

CONTEXT = GIB // 2
"""What the driver takes of a GPU for a process: the CUDA context and the code of its kernels. Torch does not count it."""

NCCL = GIB // 2
"""What NCCL's buffers take beside it, if there are several processes."""

_WORDS = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "can't allocate memory",  # torch's allocator for the CPU
)
"""Words of errors of other types than torch's own: of cuBLAS, of page-locked memory, of the CPU."""

_WRAPPERS = ("torch._dynamo", "torch._inductor")
"""Modules whose exceptions wrap what a pass of compiled layers raised."""

_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": GIB}
_SIZE = r"([\d.]+) (bytes|KiB|MiB|GiB)"


@dataclass(frozen=True)
class Shortage:
    """What an error says of the memory that was missing, in bytes."""

    asked: float | None = None
    """What was asked for. None: the error does not say."""

    free: float | None = None
    """What was there for it."""

    @property
    def missing(self) -> float | None:
        """The least that is missing. None: it is not known."""
        return None if self.asked is None or self.free is None else max(0.0, self.asked - self.free)

    def __str__(self) -> str:
        if self.asked is None:
            return "how much is missing, the library does not say"
        asked = f"{in_gib(self.asked)} were asked for"
        if self.free is None:
            return asked
        free = f"{in_gib(self.free)} were free"
        if not self.missing:
            return f"{asked}, and {free} in smaller pieces"
        return f"{asked} and {free}: at least {in_gib(self.missing)} are missing"


def in_gib(num_bytes: float) -> str:
    """Bytes as GiB, with as many digits as tell something."""
    return f"{num_bytes / GIB:.2g} GiB" if num_bytes < GIB else f"{num_bytes / GIB:.1f} GiB"


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error says that memory ran out, of a GPU or of the CPU, also one that a library has put into another."""
    if error is None:
        return False
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS):
        return True
    is_wrapper = type(error).__module__.startswith(_WRAPPERS)
    return is_out_of_memory(error.__cause__) or (is_wrapper and is_out_of_memory(error.__context__))


def shortage_of(error: BaseException) -> Shortage:
    """What an error of torch's allocator says in numbers (c10/cuda/CUDACachingAllocator.cpp)."""
    text = str(error)

    def size(before: str, after: str = "") -> float | None:
        found = re.search(before + _SIZE + after, text)
        return float(found[1]) * _UNITS[found[2]] if found else None

    asked, free, allowed = size("Tried to allocate "), size("of which ", " is free"), size("", " allowed")
    taken, unused = size("allocated memory ", " is allocated by PyTorch"), size("and ", " is reserved by PyTorch")
    if allowed is not None and taken is not None and free is not None:
        free = min(free, max(0.0, allowed - taken - (unused or 0.0)))
    return Shortage(asked, free)


def outside_torch(world: int) -> int:
    """Bytes of a GPU that a process takes without torch's knowledge, if there are so many processes."""
    return CONTEXT + (NCCL if world > 1 else 0)


def bound_of(total: float, limit_gb: float | None) -> float:
    """Bytes of a GPU that a process may take in all.

    Args:
        total: of the GPU.
        limit_gb: `launch.gpu_memory_gb`. None: all.
    """
    return total if limit_gb is None else min(total, limit_gb * GIB)


def bound_for_torch(total: float, limit_gb: float | None, world: int) -> float:
    """The part of `bound_of` that torch may allocate: all of the GPU without a limit, else without what torch does not count.

    Args:
        total: bytes of the GPU.
        limit_gb: `launch.gpu_memory_gb`. None: all.
        world: number of processes.
    """
    return total if limit_gb is None else max(0.0, bound_of(total, limit_gb) - outside_torch(world))


class GpuMemory:
    """The memory of a GPU as this process sees it, in bytes.

    Args:
        device: a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def allowed(self) -> float:
        """What this process may use, by torch's count."""
        return allowed_memory(self._device)

    def free(self) -> float:
        """What it can still allocate. Memory that torch keeps without a tensor in it counts after `release` only."""
        return float(min(torch.cuda.mem_get_info(self._device)[0], self.allowed() - torch.cuda.memory_reserved(self._device)))

    def allocated(self) -> int:
        """What its tensors take."""
        return int(torch.cuda.memory_allocated(self._device))

    def peak(self) -> int:
        """The most that they took since `reset_peak`."""
        return int(torch.cuda.max_memory_allocated(self._device))

    def reset_peak(self) -> None:
        """Begin to watch the most that tensors take."""
        torch.cuda.reset_peak_memory_stats(self._device)

    def release(self) -> None:
        """Give back what torch keeps without a tensor in it."""
        torch.cuda.empty_cache()


def memory_of(device: torch.device) -> GpuMemory | None:
    """The memory of a device. None: it is that of the CPU, which is not measured."""
    return GpuMemory(device) if device.type == "cuda" else None


def free_unused() -> None:
    """Free what a failed pass or an ended run has left: tensors in circles of references, and memory without a tensor in it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def allowed_memory(device: torch.device) -> float:
    """Bytes of a GPU's memory that this process may use."""
    return float(
        torch.cuda.get_device_properties(device).total_memory * torch.cuda.get_per_process_memory_fraction(device.index)
    )


def three_of_each(trained: Iterable[torch.Tensor]) -> int:
    """Bytes of three tensors per trained weight, in its dtype: gradients and Adam's moments, or weights and moments."""
    return sum(3 * weight.numel() * weight.element_size() for weight in trained)


def free_host_memory() -> int:
    """Bytes of CPU memory that are available on this machine, or within the container's limit."""
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
        counts = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        free = min(free, limit - used + int(counts["inactive_file"]))
    except (OSError, ValueError, KeyError):
        pass  # no such container, or no limit
    return int(free)


def free_host_memory_for_each() -> int:
    """Bytes of available CPU memory per process on this machine."""
    return free_host_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
