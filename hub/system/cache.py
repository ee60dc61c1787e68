"""The user's cache: things that can be made again at any time, each in a folder that appears whole or not at all."""

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hub.errors import HubError


def cache_dir() -> Path:
    """`$HUB_CACHE`, else `$XDG_CACHE_HOME/finetune-hub`, else `~/.cache/finetune-hub`. It need not exist yet."""
    if chosen := os.environ.get("HUB_CACHE"):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache").absolute() / "finetune-hub"


def make_once(folder: Path, make: Callable[[Path], object], is_whole: Callable[[Path], bool] = Path.is_dir) -> Path:
    """The cached folder, made first when it is missing or no longer whole.

    It is made aside and renamed, so a reader never sees half of it. Two processes may do this at once: the first to
    finish wins, and the other takes what it finds.

    Args:
        folder: where the result belongs.
        make: writes the content into the empty folder that it is given.
        is_whole: whether the content of `folder` can be used.

    Raises:
        HubError: the cache can't be written.
    """
    try:
        if is_whole(folder):
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise _not_writable(folder, error) from None
    try:
        made = aside / "made"
        made.mkdir()
        make(made)
        _put_in_place(made, folder, is_whole)
    except OSError as error:
        raise _not_writable(folder, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _put_in_place(made: Path, folder: Path, is_whole: Callable[[Path], bool]) -> None:
    while True:
        try:
            made.rename(folder)
            return
        except OSError as error:
            if is_whole(folder):
                return
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        # What lies there is damaged. It goes aside in one step too. Another process may be first to do so, or to put
        # its own there: hence the loop.
        with suppress(FileNotFoundError):
            folder.rename(Path(tempfile.mkdtemp(dir=made.parent)) / "damaged")


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed processes left behind: folders aside that are older than a day."""
    for aside in folder.parent.glob(f".{folder.name}.*"):
        with suppress(FileNotFoundError):  # another process is done with it, or removes it too
            if aside.stat().st_mtime < time.time() - 86400:
                shutil.rmtree(aside, ignore_errors=True)


def _not_writable(folder: Path, error: OSError) -> HubError:
    reason = error.strerror or str(error)
    return HubError(f"{folder}: can't write into the cache ({reason}). Set HUB_CACHE=FOLDER with a folder of yours with room")
