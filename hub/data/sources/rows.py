"""Rows that a program has in memory, written to a file for the worker processes."""

import hashlib
import json
import os
import tempfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from hub.data.json_values import JsonValue, kind_of
from hub.data.sources.memory import to_json
from hub.errors import ConfigError, can_not_write


def write_rows(rows: Iterable[Mapping[str, JsonValue]], folder: Path, read: Collection[str] = ()) -> Path:
    """Write rows as JSONL, under a name made from their content, so that a run can be resumed with the same rows.

    Args:
        rows: dictionaries, as `rows_in_memory` gives them.
        folder: in the `output_dir`; made when missing.
        read: fields that a format may read. Of any other that JSON can't hold, such as an image, only the type is written.

    Returns:
        The file.

    Raises:
        ConfigError: there is no row, one is no dictionary, or a field of `read` holds what JSON can't; or the folder can't be
            made.
    """
    digest = hashlib.sha256()
    number = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, aside = tempfile.mkstemp(dir=folder, prefix=".rows-")
    except OSError as error:
        raise can_not_write(folder.parent, error) from None
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            for number, row in enumerate(rows, 1):
                if not isinstance(row, Mapping):
                    raise ConfigError(f"data: row {number} is {type(row).__name__}. Give dictionaries, one for each row")
                line = _line(row, number, read)
                digest.update(line.encode())
                stream.write(line + "\n")
        if not number:
            raise ConfigError("data: there is no row in it. Give at least one")
        file = folder / f"rows-{digest.hexdigest()[:16]}.jsonl"
        Path(aside).replace(file)
    finally:
        Path(aside).unlink(missing_ok=True)
    return file


def _line(row: Mapping[str, Any], number: int, read: Collection[str]) -> str:
    try:
        return json.dumps(dict(row), ensure_ascii=False, default=to_json)
    except (TypeError, ValueError):
        return json.dumps(_writable(row, number, read), ensure_ascii=False, default=to_json)


def _writable(row: Mapping[str, Any], number: int, read: Collection[str]) -> dict[str, Any]:
    """The row with a word in place of each value that JSON can't hold.

    Raises:
        ConfigError: another field is one that a format may read.
    """
    written = {}
    for name, value in row.items():
        try:
            json.dumps({name: value}, default=to_json)
        except (TypeError, ValueError) as error:
            if name in read:
                raise ConfigError(
                    f"data: row {number}: {name} is {kind_of(value)} and can't be written as JSON ({error})"
                ) from None
            value = {"left out": kind_of(value)}
        written[name] = value
    return written
