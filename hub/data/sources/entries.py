"""What a source is read as: rows, lines that are not parsed yet, and errors in the place of a row."""

import json
from dataclasses import dataclass
from functools import lru_cache
from os.path import basename
from pathlib import Path

from hub.data.json_values import DECODER, JsonObject, JsonValue, kind_of
from hub.data.sources.files import shorten
from hub.errors import DataError


@dataclass(frozen=True, slots=True)
class Row:
    """One object of a data file."""

    value: JsonObject
    """The fields."""

    file: str
    """Path of the file, or id of the dataset."""

    line: int
    """Line on which the row begins, from 1. For parquet, Arrow and datasets of the model hub: the number of the row."""

    @property
    def where(self) -> str:
        """File and line for messages, as `chats.jsonl:17`."""
        return f"{name_of(self.file)}:{self.line}"

    def read(self) -> "Row":
        """The row itself: it is parsed already."""
        return self


@dataclass(frozen=True, slots=True)
class Unread:
    """A row that stays text until it is needed, so that several processes can share the parsing."""

    text: str
    file: str
    line: int

    def read(self) -> Row:
        """The row.

        Raises:
            DataError: it is broken.
        """
        return _parse_row(self.text, _path(self.file), self.line)


@dataclass(frozen=True, slots=True)
class Broken:
    """An error in the place of a row."""

    error: DataError
    file: str
    line: int

    def read(self) -> Row:
        """Raises:
        DataError: what is wrong.
        """
        raise self.error


_path = lru_cache(maxsize=64)(Path)
"""A path of a text: made once, since many rows come from one file."""

name_of = lru_cache(maxsize=64)(basename)
"""The name of a file without its folder."""

Entry = Row | Unread | Broken
"""What is read in the place of a row. So a broken row can be left out where the user asks for that."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """A position between two rows of a source."""

    file: int = 0
    """Number of the file in `data_files`."""

    offset: int = 0
    """Bytes before it (unpacked) in a file with a row on each line. Rows before it in others."""

    line: int = 0
    """Lines before it, where `offset` counts bytes."""


def parse_value(text: str, file: Path, first_line: int, start: int = 0) -> tuple[JsonValue, int]:
    """The JSON value that begins at `start`, and the position after it.

    Args:
        text: with the value.
        file: for messages.
        first_line: the line of `start`, for messages.
        start: where the value begins in `text`.

    Raises:
        DataError: there is no JSON value.
    """
    try:
        return DECODER.raw_decode(text, start)
    except RecursionError:
        reason, position = "nested too deeply", start
    except json.JSONDecodeError as error:
        reason, position = error.msg, error.pos
    except ValueError as error:
        reason, position = str(error), start
    line = first_line + text.count("\n", start, position)
    column = position - text.rfind("\n", 0, position)
    begin = start if line == first_line else position - column + 1
    end = text.find("\n", begin)
    quote = shorten(text[begin : end if end >= 0 else None])
    raise DataError(f"{file}:{line}: broken JSON at column {column} ({reason}). The line begins: {quote}")


def as_row(value: JsonValue, file: Path, line: int, text: str) -> Row:
    """A JSON value as a row.

    Args:
        value: what was parsed.
        file: where it is from.
        line: where it begins.
        text: as it is written, for messages.

    Raises:
        DataError: it is no object.
    """
    if not isinstance(value, dict):
        raise DataError(f"{file}:{line}: a row must be a JSON object {{...}}, this is {kind_of(value)}: {shorten(text)}")
    return Row(value, str(file), line)


def _parse_row(line: str, file: Path, number: int) -> Row:
    text = line.strip()
    value, end = parse_value(text, file, number)
    if text[end:].strip():
        raise DataError(
            f"{file}:{number}: broken JSON at column {end + 1} (one object per line; more text follows it). "
            f"The line begins: {shorten(text)}"
        )
    return as_row(value, file, number, text)
