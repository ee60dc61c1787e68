"""Files that a reader sees whole or not at all."""

import errno
import json
import os
import threading
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path


def write_json(file: Path, value: object) -> None:
    """Write a JSON file so that a reader sees the old or the new one, never half of it."""
    write_text(file, json.dumps(value, indent=2, default=str) + "\n")


def write_text(file: Path, text: str) -> None:
    """Write a text file so that a reader sees the old or the new one, never half of it, also after a power loss.

    Which of the two it is after a power loss is known once `sync_folder` was called for its folder.
    """
    aside = file.with_name(f".{file.name}.{os.getpid()}-{threading.get_native_id()}")
    try:
        with aside.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(file)
    except OSError:
        with suppress(OSError):  # on a disk that can't be written there is nothing to remove
            aside.unlink(missing_ok=True)  # half a file would stay on a disk that is full
        raise


def sync_file(file: Path) -> None:
    """Bring the content of a file to disk."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to disk: files that were made, renamed or removed in it. Some file systems can't be asked."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder, and those that it lies in, so that they stay after a power loss. Those that exist are left as they are."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in new:
        sync_folder(path.parent)


def names_apart(paths: Sequence[Path], taken: Collection[str] = ()) -> list[str]:
    """Names of folders: the last parts of their paths, as many as tell them apart.

    Args:
        paths: the folders. The same folder twice has the same name.
        taken: names of other things.
    """
    names = []
    for path in paths:
        others = {other for other in paths if other != path}
        parts = [part for part in path.parts if part != path.anchor]
        tails = ["/".join(parts[-number:]) for number in range(1, len(parts) + 1)]
        free = (tail for tail in tails if tail not in taken and not any(f"/{other}".endswith(f"/{tail}") for other in others))
        names.append(next(free, str(path)))
    return names
