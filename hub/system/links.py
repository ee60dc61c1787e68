"""What lies in a folder that came from elsewhere: links that lead out of it, pipes, and too many files, are refused by rule."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path


def outside(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> str | None:
    """What is wrong with an entry of a folder. None: after following links it is a file or folder inside.

    In the model hub's cache, snapshots/COMMIT/FILE links to blobs/HASH of the same repository. That counts as inside.

    Args:
        path: of the entry.
        folder: where it lies.
    """
    home = Path(os.path.realpath(folder))
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    target = Path(os.path.realpath(path))
    if not (target.is_relative_to(home) or target.is_relative_to(blobs)):
        return f"is a link to {target}, outside the folder"
    try:
        mode = os.stat(path).st_mode
    except OSError:  # a circle of links, or a target that does not exist
        return f"is a link to nothing ({os.readlink(path)})" if os.path.islink(path) else "can't be read"
    return None if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else "is no plain file"


def strange_entries(folder: Path, most: int) -> Iterator[tuple[str, str]]:
    """Yield the name of each entry that is refused, at any depth, and what is wrong with it. Links are not followed.

    Args:
        folder: an existing folder.
        most: number of entries from which on nothing is looked at any more: that is refused, too.
    """
    waiting, number = [str(folder)], 0
    while waiting:
        place = waiting.pop()
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    number += 1
                    name = os.path.relpath(entry.path, folder)
                    if number > most:
                        yield name, f"is one of more than {most:,} files"
                        return
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    elif problem := outside(entry.path, folder):
                        yield name, problem
        except OSError as error:
            yield os.path.relpath(place, folder), f"can't be read ({error.strerror})"
