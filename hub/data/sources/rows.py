"""Rows that a program has in memory, written to a file for the worker processes."""

import hashlib
import json
import os
import tempfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from hub.data.json_values import LEFT_OUT, JsonValue, has_half_character, kind_of
from hub.data.sources.memory import to_json
from hub.errors import ConfigError, can_not_write


def write_rows(
    rows: Iterable[Mapping[str, JsonValue]], folder: Path, read: Collection[str] = (), skip_bad: bool = False
) -> Path:
    """Write rows as JSONL, under a name made from their content, so that a run can be resumed with the same rows.

    Args:
        rows: dictionaries, as `rows_in_memory` gives them.
        folder: in the `output_dir`; made when missing.
        read: fields that a format may read. Of any other that JSON can't hold, such as an image, only the type is written.
        skip_bad: whether rows that can't be used are left out later. Then they are written as far as JSON can hold them.

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
                if not isinstance(row, Mapping) and not skip_bad:
                    raise ConfigError(f"data: row {number} is {kind_of(row)}. Give dictionaries, one for each row{_hint(row)}")
                line = _line(row, number, () if skip_bad else read)
                digest.update(line.encode())
                stream.write(line + "\n")
        if not number:
            raise ConfigError("data: there is no row in it. Give at least one")
        file = folder / f"rows-{digest.hexdigest()[:16]}.jsonl"
        Path(aside).replace(file)
    finally:
        Path(aside).unlink(missing_ok=True)
    return file


def _hint(row: Any) -> str:
    """What to give in place of a row that is no dictionary."""
    if isinstance(row, str) and row.lstrip().startswith("{"):
        return ", or the path of the file"
    if isinstance(row, str):
        return ': [{"text": text} for text in data]'
    is_chat = isinstance(row, list | tuple) and row and isinstance(row[0], Mapping) and "role" in row[0]
    return ': [{"messages": messages} for messages in data]' if is_chat else ""


def _line(row: Any, number: int, read: Collection[str]) -> str:
    if not isinstance(row, Mapping):
        return json.dumps(kind_of(row))
    try:
        return _dump(dict(row))
    except (TypeError, ValueError, RecursionError):
        return _dump(_writable(row, number, read))


def _dump(row: dict[str, Any]) -> str:
    line = json.dumps(row, ensure_ascii=False, default=to_json)
    # A row with half a character is refused where it is read, not here.
    return json.dumps(row, default=to_json) if has_half_character(line) else line


def _writable(row: Mapping[str, Any], number: int, read: Collection[str]) -> dict[str, Any]:
    """The row with a word in place of each value that JSON can't hold.

    Raises:
        ConfigError: another field is one that a format may read.
    """
    written = {}
    for name, value in row.items():
        try:
            json.dumps({str(name): value}, default=to_json)
        except (TypeError, ValueError, RecursionError) as error:
            if name in read:
                raise ConfigError(
                    f"data: row {number}: {name} is {kind_of(value)} and can't be written as JSON ({error})"
                ) from None
            value = {LEFT_OUT: kind_of(value)}
        written[str(name)] = value
    return written
