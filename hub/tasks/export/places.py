"""Where exports are written and how they get their names: aside first, then all at once.

Several calls may write into one folder. A call holds a lock on its folder of what is not whole yet. The system gives it back
however the call ends, so the next one knows what nobody writes any more.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hub.errors import HubError

try:
    from fcntl import LOCK_EX, LOCK_NB, flock
except ImportError:  # not all systems have locks
    flock = None  # type: ignore[assignment]

_PREFIX = ".partial-"
_BEFORE = ".before"


@contextmanager
def aside_of(out: Path) -> Iterator[Path]:
    """A folder in `out` for what is not whole yet. It is removed in any case, and so is what a killed call has left there.

    Messages of errors name `out` in its place: it is gone when they are read.
    """
    _tidy(out)
    folder, lock = _locked_folder(out)
    try:
        yield folder
    except HubError as error:
        error.args = (str(error).replace(str(folder), str(out)),)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def put_in_place(made: Path, final: Path) -> None:
    """Give a whole folder its name. The one that had it before is removed when the new one is there.

    Only within `in_turn` of the folder that both are in.
    """
    before = final.with_name(f".{final.name}{_BEFORE}")
    shutil.rmtree(before, ignore_errors=True)
    if final.exists():
        final.rename(before)
    try:
        made.rename(final)
    except OSError:
        if before.exists():
            before.rename(final)
        raise
    shutil.rmtree(before, ignore_errors=True)


@contextmanager
def in_turn(out: Path) -> Iterator[None]:
    """A context in which no other call puts exports in their place, or writes down which there are."""
    lock = _lock(out, wait=True)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def _tidy(out: Path) -> None:
    """Remove what killed calls have left, and give an export its name back that one was about to replace."""
    for left in out.glob(f"{_PREFIX}*"):
        if (lock := _lock(left)) is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)
    with in_turn(out):
        for before in out.glob(f".*{_BEFORE}"):
            final = before.with_name(before.name[1:].removesuffix(_BEFORE))
            if final.exists():
                shutil.rmtree(before, ignore_errors=True)
            else:
                before.rename(final)


def _locked_folder(out: Path) -> tuple[Path, int | None]:
    while True:
        folder = Path(tempfile.mkdtemp(dir=out, prefix=_PREFIX))
        lock = _lock(folder)
        if lock is None or folder.is_dir():
            return folder, lock
        os.close(lock)  # another call took it for one that was left


def _lock(folder: Path, wait: bool = False) -> int | None:
    """Lock a folder until what is returned is closed. None: another process has locked it, or there are no locks here."""
    if flock is None:
        return None
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            flock(number, LOCK_EX if wait else LOCK_EX | LOCK_NB)
        except OSError:
            os.close(number)
            return None
        return number
    return None
