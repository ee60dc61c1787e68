"""CPU and GPU memory: what is free, and what this process may use."""

import os
from collections.abc import Iterable
from pathlib import Path

import psutil
import torch

GIB = 2**30


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
