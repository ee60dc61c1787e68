"""Text files to entries: JSON lines, whole texts. The standard library alone is imported, so an error shows at once."""

import json
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

from hub.config.bounds import bounds
from hub.data.sources.entries import Broken, Entry, Row, Unread
from hub.data.sources.files import most_unpacked, open_file
from hub.errors import DataError

_NO_TEXT = {
    b"\xff\xfe": "the text is UTF-16. Save it as UTF-8",
    b"\xfe\xff": "the text is UTF-16. Save it as UTF-8",
    b"\x1f\x8b": "the file is compressed with gzip. Let its name end in .gz",
    b"BZh91AY&SY": "the file is compressed with bzip2. Let its name end in .bz2",
    b"\xfd7zXZ": "the file is compressed with xz. Let its name end in .xz",
    b"\x28\xb5\x2f\xfd": "the file is compressed with Zstandard. Let its name end in .zst",
    b"PK\x03\x04": "the file is a zip archive (let its name end in .zip) or a workbook of Excel (save it as CSV)",
    b"PAR1\x15": "the file is parquet. Let its name end in .parquet",
}
"""First bytes of a file -> why it is not read as text, and what to do."""

_NUM_LOOKED_AT = 20

_LARGE = 2**20
"""Bytes of a line whose values are counted."""


class Line(NamedTuple):
    """A line of a text file."""

    number: int
    text: str
    """With U+FFFD for what is no text."""

    end: int
    """Bytes up to its end, line end included."""

    error: DataError | None = None
    """Why it can't be read as text."""

    is_cut: bool = False
    """Whether this is only its beginning."""

    def entry(self, file: Path) -> Entry:
        """The row on this line."""
        return Broken(self.error, str(file), self.number) if self.error else Unread(self.text, str(file), self.number)


def lines(file: Path, offset: int = 0, line: int = 0, bounded: bool = True, cut: bool = False) -> Iterator[Line]:
    """Each line, line end included. Only a line feed ends a line, as in JSONL.

    Args:
        file: a text file.
        offset: byte to begin at.
        line: lines before that.
        bounded: whether a line may have `launch.max_row_mb` at most.
        cut: whether a longer one is given as its beginning, and is the last.

    Raises:
        DataError: the file can't be read, its first bytes are those of UTF-16 or of an archive, or a line is too long.
    """
    most, allowed = most_unpacked(file), bounds()
    longest = allowed.max_row_mb * 2**20 if bounded else None
    try:
        with open_file(file, offset) as stream:
            for number in count(line + 1):
                raw = stream.readline(-1 if longest is None else longest + 1)
                if not raw:
                    return
                offset += len(raw)
                if offset > most:
                    raise DataError(
                        f"{file}: it unpacks to more than {allowed.max_unpacked_ratio} times its size. If you trust it, type "
                        f"a larger launch.max_unpacked_ratio (now {allowed.max_unpacked_ratio}), or unpack it"
                    )
                if longest is not None and len(raw) > longest:
                    if cut:
                        yield Line(number, raw.decode(errors="ignore"), offset, is_cut=True)
                        return
                    raise DataError(
                        f"{file}:{number}: this line has more than {allowed.max_row_mb} MiB. Write its text as several rows, "
                        f"or type a larger launch.max_row_mb (now {allowed.max_row_mb})"
                    )
                if len(raw) > _LARGE and sum(map(raw.count, (b",", b"[", b"{"))) > allowed.max_row_values:
                    error = DataError(
                        f"{file}:{number}: this row has more than {allowed.max_row_values:,} values. Write it as several rows, "
                        f"or type a larger launch.max_row_values (now {allowed.max_row_values})"
                    )
                    yield Line(number, "", offset, error)
                    continue
                if number == 1:
                    if form := next((words for magic, words in _NO_TEXT.items() if raw.startswith(magic)), None):
                        raise DataError(f"{file}: {form}")
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                if b"\0" in raw:
                    error = DataError(f"{file}:{number}: a zero byte: this is a binary file, not text")
                    yield Line(number, _legible(raw), offset, error)
                    continue
                try:
                    yield Line(number, raw.decode(), offset)
                except UnicodeDecodeError as wrong:
                    error = DataError(
                        f"{file}:{number}: byte {wrong.start + 1} of the line (0x{raw[wrong.start]:02x}) is not UTF-8: "
                        "a binary file, or text in another encoding. Save it as UTF-8"
                    )
                    yield Line(number, _legible(raw), offset, error)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:  # no archive, or one cut short
        raise DataError(f"{file}: can't be read ({getattr(error, 'strerror', None) or error})") from None


def _legible(raw: bytes) -> str:
    return raw.replace(b"\0", b"\xff").decode(errors="replace")


def texts(file: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line.

    Raises:
        DataError: one of them can't be read as text.
    """
    for line in lines(file, bounded=False):
        if line.error:
            raise line.error
        yield line.number, line.text


def read_text(file: Path) -> Iterator[Entry]:
    """A text file as one row with the field text.

    Raises:
        DataError: it can't be read as text, or has rows in JSON.
    """
    text = "".join(line for _, line in texts(file))
    if _has_rows(text):
        raise DataError(
            f"{file}: its lines are JSON objects, and a text file is trained as one text. Let its name end in .jsonl"
        )
    if text.strip():
        yield Row({"text": text}, str(file), 1)


def _has_rows(text: str) -> bool:
    """Whether each of the first lines is a JSON object."""
    present = [line for line in islice(text.splitlines(), _NUM_LOOKED_AT) if line.strip()]
    try:
        return bool(present) and all(isinstance(json.loads(line), dict) for line in present)
    except (ValueError, RecursionError):
        return False
