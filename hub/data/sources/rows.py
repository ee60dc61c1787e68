"""Rows that a program has in memory, written to a file for the worker processes."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from hub.data.json_values import JsonValue
from hub.errors import ConfigError, can_not_write


def write_rows(rows: Iterable[Mapping[str, JsonValue]], folder: Path) -> Path:
    """Write rows as JSONL, under a name made from their content, so that a run can be resumed with the same rows.

    Args:
        rows: any iterable of dictionaries, such as a list, a generator or a `datasets.Dataset`.
        folder: in the `output_dir`; made when missing.

    Returns:
        The file.

    Raises:
        ConfigError: there is no row, one is no dictionary, or one holds what JSON can't; or the folder can't be made.
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
                try:
                    line = json.dumps(dict(row), ensure_ascii=False)
                except (TypeError, ValueError) as error:
                    raise ConfigError(f"data: row {number} can't be written as JSON ({error})") from None
                digest.update(line.encode())
                stream.write(line + "\n")
        if not number:
            raise ConfigError("data: there is no row in it. Give at least one")
        file = folder / f"rows-{digest.hexdigest()[:16]}.jsonl"
        Path(aside).replace(file)
    finally:
        Path(aside).unlink(missing_ok=True)
    return file
