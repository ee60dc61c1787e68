"""Files that a reader sees whole or not at all."""

import json
import os
from pathlib import Path


def write_json(file: Path, value: object) -> None:
    """Write a JSON file so that a reader sees the old or the new one, never half of it."""
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8") as stream:
            json.dump(value, stream, indent=2, default=str)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(file)
    except OSError:
        aside.unlink(missing_ok=True)  # half a file would stay on a disk that is full
        raise
