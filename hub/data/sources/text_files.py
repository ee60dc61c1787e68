"""Text files to entries: JSON lines, whole texts. The standard library alone is imported, so an error shows at once."""

import lzma
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hub.data.sources.entries import Broken, Entry, Row, Unread
from hub.data.sources.files import open_file
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
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:  # no archive, or one cut short
        raise DataError(f"{file}: can't be read ({getattr(error, 'strerror', None) or error})") from None


def texts(file: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line.

    Raises:
        DataError: one of them can't be read as text.
    """
    for line in lines(file):
        if line.error:
            raise line.error
        yield line.number, line.text


def read_text(file: Path) -> Iterator[Entry]:
    """A text file as one row with the field text.

    Raises:
        DataError: it can't be read as text.
    """
    text = "".join(line for _, line in texts(file))
    if text.strip():
        yield Row({"text": text}, str(file), 1)
