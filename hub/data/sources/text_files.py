"""Text files to entries: JSON lines, a JSON list, CSV. The standard library alone is imported, so an error shows at once."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hub.data.sources.entries import Broken, Entry, Row, Unread, as_row, parse_value
from hub.data.sources.files import LONGEST_QUOTE, open_file, shorten
from hub.errors import DataError


class Line(NamedTuple):
    """A line of a text file."""

    number: int
    text: str
    end: int
    """Bytes up to its end, line end included."""

    error: DataError | None = None
    """Why it can't be read as text."""

    def entry(self, file: Path) -> Entry:
        """The row on this line."""
        return Broken(self.error, str(file), self.number) if self.error else Unread(self.text, str(file), self.number)


def lines(file: Path, offset: int = 0, line: int = 0) -> Iterator[Line]:
    """Each line, line end included. Only a line feed ends a line, as in JSONL.

    Args:
        file: a text file.
        offset: byte to begin at.
        line: lines before that.

    Raises:
        DataError: the file can't be read, or it is UTF-16.
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
                    yield Line(number, "", offset, error)
                    continue
                try:
                    yield Line(number, raw.decode(), offset)
                except UnicodeDecodeError as wrong:
                    error = DataError(
                        f"{file}:{number}: byte {wrong.start + 1} of the line (0x{raw[wrong.start]:02x}) is not UTF-8: "
                        "a binary file, or text in another encoding. Save it as UTF-8"
                    )
                    yield Line(number, "", offset, error)
    except (OSError, EOFError) as error:  # of a file that is no archive, or is cut short
        raise DataError(f"{file}: can't be read ({getattr(error, 'strerror', None) or error})") from None


def _texts(file: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line.

    Raises:
        DataError: one of them can't be read as text.
    """
    for line in lines(file):
        if line.error:
            raise line.error
        yield line.number, line.text


def is_list(file: Path) -> bool:
    """Whether a file is one JSON list. Many .json files have one object per line instead."""
    return next((line.text.lstrip() for line in lines(file) if line.text.strip()), "").startswith("[")


def read_list(file: Path) -> Iterator[Entry]:
    """The rows of a file that is one JSON list. It is read as a whole.

    Raises:
        DataError: the list is broken between two rows.
    """
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
        value, end = parse_value(text, file, line, position)
        try:
            yield as_row(value, file, line, text[position:end])
        except DataError as error:
            yield Broken(error, str(file), line)
        line += text.count("\n", position, end)
        position = skip(end)
        if text.startswith(",", position):
            position = skip(position + 1)
        elif not text.startswith("]", position):
            rest = text[position : position + 2 * LONGEST_QUOTE]
            content = f"here is: {shorten(rest)}" if rest else "the file ends here: it seems to be cut short"
            raise DataError(f"{file}:{line}: broken JSON: a comma or ] must follow a row; {content}")
    if text[position + 1 :].strip():
        line += text.count("\n", position, skip(position + 1))
        raise DataError(f"{file}:{line}: broken JSON: more text follows the end of the list")


def read_csv(file: Path) -> Iterator[Entry]:
    """The rows of a CSV file. Cells are text. The first row names the fields.

    Raises:
        DataError: the first row names no fields, or one twice.
    """
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
