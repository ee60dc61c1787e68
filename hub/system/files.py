"""Files that a reader sees whole or not at all."""

import json
import os
import threading
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path


def write_json(file: Path, value: object) -> None:
    """Write a JSON file so that a reader sees the old or the new one, never half of it."""
    aside = file.with_name(f".{file.name}.{os.getpid()}-{threading.get_native_id()}")
    try:
        with aside.open("w", encoding="utf-8") as stream:
            json.dump(value, stream, indent=2, default=str)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(file)
    except OSError:
        with suppress(OSError):  # on a disk that can't be written there is nothing to remove
            aside.unlink(missing_ok=True)  # half a file would stay on a disk that is full
        raise


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
