"""Rows of a data source, one at a time, each with the file and line that it came from.

JSONL, JSON and CSV are read with the standard library alone, so that a broken line is found, with its number, before
anything heavy is imported. Parquet, Arrow and data sets of the model hub go through pyarrow and `datasets`.

What is read is an `Entry`: a row, a line that is not parsed yet, or the mistake that is in its place. So the work of parsing
can be shared, and a broken row can be left out where that is asked for.
"""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from hub.config.paths import file_kind, is_hub_id
from hub.data.sources.files import LONGEST_QUOTE, data_files, open_file, shorten
from hub.data.sources.model_hub import read_model_hub
from hub.errors import DataError, one_line

__all__ = ["Broken", "Cursor", "Entry", "Row", "Unread", "data_files", "is_hub_id", "read_rows", "rows_after"]

_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Row:
    """One object of a data file."""

    value: dict[str, Any]
    """The fields."""

    file: str
    """Path of the file, or id of the data set."""

    line: int
    """Line on which the row begins, from 1. For parquet, Arrow and data sets of the model hub: the number of the row."""

    @property
    def where(self) -> str:
        """`chats.jsonl:17`, for messages."""
        return f"{Path(self.file).name}:{self.line}"

    def read(self) -> "Row":
        """Itself: it is read already."""
        return self


@dataclass(frozen=True, slots=True)
class Unread:
    """A row that is held as text until it is needed."""

    text: str
    file: str
    line: int

    def read(self) -> Row:
        """The row.

        Raises:
            DataError: it is broken.
        """
        return _json_row(self.text, Path(self.file), self.line)


@dataclass(frozen=True, slots=True)
class Broken:
    """What stands where a row should be."""

    error: DataError
    file: str
    line: int

    def read(self) -> Row:
        """Raises:
        DataError: what is wrong.
        """
        raise self.error


Entry = Row | Unread | Broken


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place between two rows of a source."""

    file: int = 0
    """Number of the file in `data_files`."""

    offset: int = 0
    """Bytes before it (unpacked) in a file with a row on each line; rows before it in others."""

    line: int = 0
    """Lines before it, where `offset` counts bytes."""


class _Line(NamedTuple):
    number: int
    text: str
    end: int
    """The place in bytes behind it."""

    error: DataError | None = None
    """Why it is no text."""

    def entry(self, file: Path) -> "Entry":
        """The row on this line."""
        return Broken(self.error, str(file), self.number) if self.error else Unread(self.text, str(file), self.number)


def read_rows(path: str, subset: str | None = None, split: str = "train") -> Iterator[Row]:
    """All rows of a file, a folder of files (sorted by name) or a data set of the model hub.

    Args:
        path: a file, a folder, or an id of the model hub.
        subset: of a data set of the model hub, which of its parts (there it is called config).
        split: of a data set of the model hub.

    Raises:
        DataError: nothing is there, or a row can't be read; the message names file and line.
    """
    return (entry.read() for entry, _ in rows_after(path, Cursor(), subset, split, stream=False))


def rows_after(
    path: str, cursor: Cursor, subset: str | None = None, split: str = "train", stream: bool = True
) -> Iterator[tuple[Entry, Cursor]]:
    """The rows of a source behind a place, each with the place behind it.

    Args:
        path: as for `read_rows`.
        cursor: a place that was given before, or `Cursor()` for the first row.
        subset: as for `read_rows`.
        split: as for `read_rows`.
        stream: no more than one row is to be in memory.

    Raises:
        DataError: nothing is there, a file holds no row, or a file can only be read as a whole and `stream` forbids it. What is
            wrong with a single row is in its place.
    """
    if is_hub_id(path):
        found = enumerate(read_model_hub(path, subset, split, stream), 1)
        for count, value in islice(found, cursor.offset, None):
            yield Row(value, path, count), Cursor(0, count)
        return
    for number, file in enumerate(data_files(path)):
        if number < cursor.file:
            continue
        begin = cursor if number == cursor.file else Cursor(number)
        empty = begin.offset == 0
        kind = file_kind(file)
        is_list = kind == ".json" and _is_list(file)
        if is_list and stream:
            raise DataError(f"{file}: a JSON list is read as a whole and can't be streamed. Write one object per line (JSONL)")
        if kind in (".jsonl", ".json") and not is_list:
            for line in _lines(file, begin.offset, begin.line):
                if line.error or line.text.strip():
                    empty = False
                    yield line.entry(file), Cursor(number, line.end, line.number)
        else:
            entries = _read_list(file) if is_list else _READERS[kind or ""](file)
            for count, entry in enumerate(islice(entries, begin.offset, None), begin.offset + 1):
                empty = False
                yield entry, Cursor(number, count)
        if empty:
            raise DataError(f"{file}: the file holds no rows. Give a file with at least one, or take it out of the folder")


def _lines(file: Path, offset: int = 0, line: int = 0) -> Iterator[_Line]:
    """Each line, line end included. Only a line feed ends a line, as in JSONL.

    Args:
        file: a text file.
        offset: byte to begin at.
        line: lines before that.
    """
    try:
        with open_file(file, offset) as stream:
            for number, raw in enumerate(stream, line + 1):
                offset += len(raw)
                if number == 1:
                    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                        raise DataError(f"{file}: the text is UTF-16. Save it as UTF-8")
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                if b"\0" in raw:
                    error = DataError(f"{file}:{number}: a zero byte: this is a binary file, not text")
                    yield _Line(number, "", offset, error)
                    continue
                try:
                    yield _Line(number, raw.decode(), offset)
                except UnicodeDecodeError as wrong:
                    error = DataError(
                        f"{file}:{number}: byte {wrong.start + 1} of the line (0x{raw[wrong.start]:02x}) is not UTF-8: "
                        "a binary file, or text in another encoding. Save it as UTF-8"
                    )
                    yield _Line(number, "", offset, error)
    except (OSError, EOFError) as error:  # of a file that is no archive, or one that is cut short
        raise DataError(f"{file}: can't be read ({getattr(error, 'strerror', None) or error})") from None


def _texts(file: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line.

    Raises:
        DataError: one of them is no text.
    """
    for line in _lines(file):
        if line.error:
            raise line.error
        yield line.number, line.text


def _parse(text: str, file: Path, first_line: int, start: int = 0) -> tuple[Any, int]:
    """The JSON value that begins at `start`, and the position after it."""
    try:
        return _DECODER.raw_decode(text, start)
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


def _object(value: Any, file: Path, line: int, text: str) -> Row:
    if not isinstance(value, dict):
        kind = {list: "a list", str: "a text", type(None): "null", bool: "true or false"}.get(type(value), "a number")
        raise DataError(f"{file}:{line}: a row must be a JSON object {{...}}, this is {kind}: {shorten(text)}")
    return Row(value, str(file), line)


def _json_row(line: str, file: Path, number: int) -> Row:
    text = line.strip()
    value, end = _parse(text, file, number)
    if text[end:].strip():
        raise DataError(
            f"{file}:{number}: broken JSON at column {end + 1} (one object per line; more text follows it). "
            f"The line begins: {shorten(text)}"
        )
    return _object(value, file, number, text)


def _is_list(file: Path) -> bool:
    """Whether a file is one JSON list. Many files named .json have one object per line instead."""
    return next((line.text.lstrip() for line in _lines(file) if line.text.strip()), "").startswith("[")


def _read_list(file: Path) -> Iterator[Entry]:
    text = "".join(line for _, line in _texts(file))
    position, line = text.index("[") + 1, 1 + text.count("\n", 0, text.index("["))
    space = re.compile(r"[ \t\r\n]*")

    def skip(start: int) -> int:
        nonlocal line
        match = space.match(text, start)
        end = match.end() if match else start
        line += text.count("\n", start, end)
        return end

    position = skip(position)
    while not text.startswith("]", position):
        value, end = _parse(text, file, line, position)
        try:
            yield _object(value, file, line, text[position:end])
        except DataError as error:
            yield Broken(error, str(file), line)
        line += text.count("\n", position, end)
        position = skip(end)
        if text.startswith(",", position):
            position = skip(position + 1)
        elif not text.startswith("]", position):
            rest = text[position : position + 2 * LONGEST_QUOTE]
            found = f"here stands: {shorten(rest)}" if rest else "the file ends here: it seems to be cut short"
            raise DataError(f"{file}:{line}: broken JSON: a comma or ] must follow a row; {found}")
    if text[position + 1 :].strip():
        line += text.count("\n", position, skip(position + 1))
        raise DataError(f"{file}:{line}: broken JSON: more text follows the end of the list")


def _read_csv(file: Path) -> Iterator[Entry]:
    """Cells are text. The first row names the fields."""
    csv.field_size_limit(2**31 - 1)
    table = csv.reader((text for _, text in _texts(file)), strict=True)
    header: list[str] | None = None
    begin = 1
    while True:
        error = ""
        try:
            cells = next(table)
        except StopIteration:
            return
        except csv.Error as wrong:
            cells, error = [], f"broken CSV ({wrong})"
        if error:
            yield Broken(DataError(f"{file}:{begin}: {error}"), str(file), begin)
        elif any(cells) and header is None:
            header = cells
            if len(set(header)) < len(header) or "" in header:
                raise DataError(f"{file}:{begin}: the first row must name the fields, each once: {shorten(str(header))}")
        elif any(cells) and header is not None and len(cells) != len(header):
            wrong_count = DataError(
                f"{file}:{begin}: {len(cells)} cells, but the first row names {len(header)} fields. "
                f"The row begins: {shorten(','.join(cells))}"
            )
            yield Broken(wrong_count, str(file), begin)
        elif any(cells) and header is not None:
            yield Row(dict(zip(header, cells, strict=True)), str(file), begin)
        begin = table.line_num + 1


def _read_parquet(file: Path) -> Iterator[Entry]:
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            yield from _of_batches(table.iter_batches(batch_size=1000), file)
    except Exception as error:  # a damaged file shows as one of many classes of pyarrow
        raise DataError(f"{file}: can't be read as parquet ({one_line(error)})") from None


def _read_arrow(file: Path) -> Iterator[Entry]:
    """Both forms of Arrow files: the stream that `datasets` writes, and the one with an index."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(file)) as data:
            try:
                table = pyarrow.ipc.open_stream(data)
                batches: Iterator[Any] = iter(table)
            except pyarrow.ArrowInvalid:
                table = pyarrow.ipc.open_file(data)
                batches = (table.get_batch(number) for number in range(table.num_record_batches))
            yield from _of_batches(batches, file)
    except Exception as error:
        raise DataError(f"{file}: can't be read as Arrow ({one_line(error)})") from None


def _of_batches(batches: Iterator[Any], file: Path) -> Iterator[Entry]:
    number = 0
    for batch in batches:
        for value in batch.to_pylist():
            number += 1
            yield Row(value, str(file), number)


_READERS = {".csv": _read_csv, ".parquet": _read_parquet, ".arrow": _read_arrow}
