"""What can begin before a worker has imported its libraries, which takes seconds: the GPU's context, reading the weights.

Both run beside the imports, in threads that hold no lock of Python's while they wait. Neither changes a result. Both may fail.
"""

import ctypes
import gc
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

MEMORY_FRACTION = 0.5
"""Largest part of the free CPU memory that is filled with files ahead of their use."""

_PIECE = 2**26


@contextmanager
def without_collector(freeze: bool) -> Iterator[None]:
    """Import modules without Python's garbage collector, which looks through all that they make again and again.

    Args:
        freeze: never look through what was made here. Only in a process that exists for one run.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if freeze:
            gc.freeze()
        if was_on:
            gc.enable()


def make_gpu_context(local_rank: int, load: Callable[[str], Any] = ctypes.CDLL) -> threading.Thread | None:
    """Begin to make the context of this process on its GPU: the primary one, which torch uses. Without a GPU nothing happens.

    Args:
        local_rank: number of the process on this machine, and of its GPU among the visible ones.
        load: loads the driver's library.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return None

    def make() -> None:
        with suppress(OSError, AttributeError):  # no driver here: torch will say what is wrong
            driver = load("libcuda.so.1")
            device, context = ctypes.c_int(), ctypes.c_void_p()
            if driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(device), local_rank) == 0:
                driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)

    return _beside(make)


def read_ahead(folder: Path, free_bytes: int | None = None) -> threading.Thread | None:
    """Begin to read a folder's weights from disk, so that they are in memory when they are loaded.

    Args:
        folder: with safetensors files. Without them nothing happens.
        free_bytes: free CPU memory. None: as the system says. Weights that would take more than half of it are left alone.
    """
    if not hasattr(os, "posix_fadvise"):
        return None

    def read() -> None:
        with suppress(OSError):
            files = sorted(folder.glob("*.safetensors"))
            free = _free_bytes() if free_bytes is None else free_bytes
            if sum(file.stat().st_size for file in files) > MEMORY_FRACTION * free:
                return
            for file in files:
                with file.open("rb") as stream:
                    for start in range(0, file.stat().st_size, _PIECE):
                        os.posix_fadvise(stream.fileno(), start, _PIECE, os.POSIX_FADV_WILLNEED)

    return _beside(read)


def _free_bytes() -> int:
    """Memory that is free for files, in bytes. 0: the system does not say."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0


def _beside(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread
