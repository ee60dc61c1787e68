"""The user's cache: folders that can be rebuilt at any time. Each appears complete or not at all."""

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
    """Return a cached folder. If it is missing or incomplete, it is made first.

    It is written to a temporary folder and renamed, so a reader never sees an incomplete one. If two processes do this at the
    same time, the first to finish wins, and the other uses its result.

    Args:
        folder: the path of the cached folder.
        make: writes the content into an empty folder.
        is_whole: whether `folder` is complete.

    Raises:
        HubError: the cache is not writable.
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
        # The folder there is damaged: move it away, in one step too. Another process may do so at the same time, or put its
        # own folder there, hence the loop.
        with suppress(FileNotFoundError):
            folder.rename(Path(tempfile.mkdtemp(dir=made.parent)) / "damaged")


def _remove_abandoned(folder: Path) -> None:
    """Remove temporary folders of killed processes: those older than a day."""
    for aside in folder.parent.glob(f".{folder.name}.*"):
        with suppress(FileNotFoundError):  # another process has renamed or removed it
            if aside.stat().st_mtime < time.time() - 86400:
                shutil.rmtree(aside, ignore_errors=True)


def _not_writable(folder: Path, error: OSError) -> HubError:
    reason = error.strerror or str(error)
    return HubError(
        f"{folder}: can't write into the cache ({reason}). Set HUB_CACHE=FOLDER with a writable folder with free space"
    )
