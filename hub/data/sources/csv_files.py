"""CSV as spreadsheets and pandas write it: commas, semicolons or tabs, columns without a name, `sep=` in the first line."""

import csv
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from hub.config.bounds import bounds
from hub.data.json_values import JsonObject
from hub.data.sources.entries import Broken, Entry, Row
from hub.data.sources.files import shorten
from hub.data.sources.text_files import lines
from hub.errors import DataError

SEPARATORS = (",", ";", "\t", "|")
_QUOTED = re.compile(r'"[^"]*"')
_BEHIND_RETURN = re.compile(r"(?<=\r)(?!\n)|(?<=\r\n)")
_REASONS = {
    "new-line character": "a line end in a cell without quotes",
    "unexpected end": "a quote is not closed",
    "field larger": "a cell is longer than launch.max_row_mb: a quote is missing, perhaps",
}
"""What Python says of a broken row -> the same for a user."""


class _Begin(NamedTuple):
    separator: str
    num_lines: int
    """Lines before the names of the fields."""

    rest: Iterator[str]
    undecoded: list[DataError]
    """Why lines that were read just now are no text."""


def read_csv(file: Path) -> Iterator[Entry]:
    """The rows of a CSV file. Cells are text. The first row names the fields; nothing reads a column without a name.

    Raises:
        DataError: the first row names no fields, or one twice.
    """
    csv.field_size_limit(bounds().max_row_mb * 2**20)
    begin = _begin(file)
    table = csv.reader(begin.rest, delimiter=begin.separator, strict=True)
    names: list[str] = []
    line = begin.num_lines + 1
    while True:
        cells: list[str] = []
        error = None
        try:
            cells = next(table)
        except StopIteration:
            return
        except csv.Error as wrong:
            last = begin.num_lines + table.line_num
            lost = f". It takes up the lines {line} to {last}: a quote is missing in it, perhaps" if last > line else ""
            error = DataError(f"{file}:{line}: broken CSV ({_reason(str(wrong))}){lost}")
        error = begin.undecoded[0] if begin.undecoded else error
        begin.undecoded.clear()
        if error and not names:
            raise error
        if error:
            yield Broken(error, str(file), line)
        elif any(cells) and not names:
            names = _names(cells, file, line)
        elif any(cells):
            yield _row(names, cells, file, line, begin.separator)
        line = begin.num_lines + table.line_num + 1


def _reason(error: str) -> str:
    return next((words for begin, words in _REASONS.items() if error.startswith(begin)), error)


def _begin(file: Path) -> _Begin:
    """The separator of a file, from its first line."""
    undecoded: list[DataError] = []
    rest = _texts(file, undecoded)
    num_blank, first = 0, ""
    for first in rest:
        if first.strip():
            break
        num_blank += 1
    if given := re.fullmatch(r"sep=(.)\s*", first):  # for Excel
        return _Begin(given[1], num_blank + 1, rest, undecoded)
    whole = chain([first], rest)
    unquoted = _QUOTED.sub("", first)
    is_tsv = ".tsv" in (ending.lower() for ending in file.suffixes) and "\t" in unquoted
    return _Begin("\t" if is_tsv else max(SEPARATORS, key=unquoted.count), num_blank, whole, undecoded)


def _texts(file: Path, undecoded: list[DataError]) -> Iterator[str]:
    """The lines of a file. The error of one that is no text is put into `undecoded`."""
    ends_with_return = None
    rest = ""
    for line in lines(file):
        if line.error:
            undecoded.append(line.error)
        if ends_with_return is None and line.text.strip():
            # Excel on a Mac may end lines with a carriage return alone.
            ends_with_return = "\r" in _QUOTED.sub("", line.text).removesuffix("\n").removesuffix("\r")
        if ends_with_return:
            *whole, rest = _BEHIND_RETURN.split(rest + line.text)
            yield from whole
        else:
            yield line.text
    if rest:
        yield rest


def _names(cells: list[str], file: Path, line: int) -> list[str]:
    """The names of the fields. A column without one gets `column N`."""
    given = [cell.strip() for cell in cells]
    names = [name or f"column {number}" for number, name in enumerate(given, 1)]
    if len(set(names)) < len(names) or not any(given):
        raise DataError(f"{file}:{line}: the first row must name the fields, each once: {shorten(str(cells))}")
    return names


def _row(names: list[str], cells: list[str], file: Path, line: int, separator: str) -> Entry:
    while len(cells) > len(names) and not cells[-1]:
        cells = cells[:-1]
    if len(cells) != len(names):
        wrong_count = DataError(
            f"{file}:{line}: {len(cells)} cells, but the first row names {len(names)} fields. "
            f"The row begins: {shorten(separator.join(cells))}"
        )
        return Broken(wrong_count, str(file), line)
    value: JsonObject = {name: cell for name, cell in zip(names, cells, strict=True) if cell or not name.startswith("column ")}
    return Row(value, str(file), line)
