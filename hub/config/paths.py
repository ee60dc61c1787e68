"""What a data path means by its name alone: which endings a data file may have, and which paths are ids of the model hub."""

import os
import re
from pathlib import Path

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".zip")
"""Endings of data files, without compression."""

COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
"""Endings that may follow those of text files."""

_TEXT_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def file_kind(file: Path) -> str | None:
    """The ending that decides how a file is read, without that of its compression. None: it can't be read.

    A name that ends in .zip alone says nothing about the file inside.
    """
    name = file.name.lower()
    for suffix in SUFFIXES:
        endings = ("", *COMPRESSED) if suffix in _TEXT_SUFFIXES else ("",)
        if any(name.endswith(suffix + ending) for ending in endings):
            return suffix
    return None


def is_pattern(path: str) -> bool:
    """Whether `path` may stand for several files, as in a shell: `data/*.jsonl`."""
    return any(sign in path for sign in "*?[")


def path_list(given: object) -> list[str]:
    """An option that is a path or a list of paths, as a list. Empty: it is neither, and the rules of the option say so."""
    paths = [given] if isinstance(given, str) else given
    return paths if isinstance(paths, list) and all(isinstance(path, str) for path in paths) else []


def is_hub_id(path: str) -> bool:
    """Whether `path` is looked up on the model hub: it has the form `org/name`, and nothing local has that name."""
    local = Path(os.path.expanduser(path))
    return (
        _HUB_ID.fullmatch(path) is not None
        and not file_kind(local)
        and not os.path.exists(local)
        and not os.path.exists(local.parent)
    )
