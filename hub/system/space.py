"""Space on a disk: what is asked before something large is written, and the line for a disk that is full."""

import errno
import os
import re
import shutil
from pathlib import Path
from typing import BinaryIO

from hub.errors import ConfigError

_MIB = 2**20
_WORDS = re.compile(r"No space left on device|Disk quota exceeded|StorageFull|QuotaExceeded|\d+ requested and \d+ written")
"""Of the system, of safetensors (Rust), and of NumPy's `ndarray.tofile`."""


def size_text(num_bytes: int) -> str:
    """A size in MiB or GiB."""
    mib = num_bytes / _MIB
    return f"{mib / 1024:.2f} GiB" if mib >= 1024 else f"{mib:.1f} MiB"


def free_space(folder: Path) -> int:
    """Bytes that are free on the disk of a folder, which need not exist."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    return shutil.disk_usage(there).free


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk is full or a quota used up: of Python, or of a library with errors of its own."""
    number = getattr(error, "errno", None)
    return number in (errno.ENOSPC, errno.EDQUOT) or says_full(str(error))


def says_full(text: str) -> bool:
    """Whether the words of another program say that a disk is full."""
    return _WORDS.search(text) is not None


def too_full(folder: Path, what: str, needed: int, free: int | None = None) -> ConfigError:
    """The error for a disk that is too full.

    Args:
        folder: where it was to be written.
        what: what was to be written, as the subject of a sentence.
        needed: bytes of it.
        free: bytes that are free. None: what is free now.
    """
    free = free_space(folder) if free is None else free
    return ConfigError(
        f"{folder}: {what} needs {size_text(needed)}, and {size_text(free)} are free there. Free space, or type out=FOLDER on "
        "another disk"
    )


def check_space(folder: Path, what: str, needed: int) -> None:
    """Check that the disk of a folder has room. Takes the arguments of `too_full`.

    Raises:
        ConfigError: it has not.
    """
    if (free := free_space(folder)) < needed:
        raise too_full(folder, what, needed, free)


def reserve(file: BinaryIO, num_bytes: int) -> None:
    """Take the space of a file that is written through memory later. There a full disk would end the process (SIGBUS).

    Raises:
        OSError: the disk is full.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, num_bytes)
        return
    zeros = bytes(_MIB)
    for start in range(0, num_bytes, _MIB):
        file.write(zeros[: min(_MIB, num_bytes - start)])
    file.flush()
