"""A seeded sample of the rows of a large source, with the weight of each. No row of the rest is parsed."""

import random
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

from hub.config.data import DataSource
from hub.data.sources.entries import Cursor, Entry, Row, Unread
from hub.data.sources.files import content_kind, data_files
from hub.data.sources.json_files import is_whole
from hub.data.sources.read import rows_after

MAX_ROWS = 2000
"""Rows of a sample."""

MIN_ROWS = 32
MAX_BYTES = 2**20
"""Bytes of the rows of a sample: they take about a second to tokenize."""

NUM_LONGEST = 4
"""The longest rows are all in the sample: their lengths decide what must fit into memory."""

SCANNED_BYTES = 512 * 2**20
"""Files up to this size are scanned for line ends, in about a second. Of larger ones the number of rows is estimated."""

MAX_READ = 20_000
"""Rows that are read of a source that is no file of JSON lines: one after the other, since places in it mean nothing."""

_UNPACKED = {".gz": 4.0, ".bz2": 5.0, ".xz": 5.5, ".zst": 4.0, ".zip": 4.0, ".parquet": 3.0, ".arrow": 1.0}
"""Bytes of text for each byte of such a file, roughly."""


@dataclass(frozen=True)
class Picked:
    """One row of a sample."""

    entry: Entry
    num_bytes: int
    weight: float
    """How many rows of the source it stands for. The weights of a sample add up to about all rows."""

    certain: bool = False
    """It stands for itself alone: one of the longest rows."""


@dataclass(frozen=True)
class Sampled:
    """A sample of a source."""

    rows: list[Picked]
    num_rows: float
    """Rows of the source, as far as they are known."""

    counted: bool
    """Whether `num_rows` was counted, and not estimated."""

    in_order: bool = False
    """Only the first rows of the source were read. Later ones may be unlike them."""


def sample_rows(source: DataSource, seed: int) -> Sampled:
    """Draw rows of a local source.

    Of files of JSON lines a row is drawn with a chance in proportion to its bytes (Hansen and Hurwitz, 1943): the tokens of
    a row for each of its bytes hardly differ, so few rows tell the tokens of all.

    Args:
        source: not one of the model hub.
        seed: decides which rows are drawn.

    Raises:
        DataError: a file can't be read.
    """
    files = data_files(source.path, source.split)
    if all(content_kind(file) in (".jsonl", ".json", ".ndjson") and _is_plain(file) for file in files):
        return _of_lines(files, random.Random(seed))
    return _of_first(source, files, random.Random(seed))


def _is_plain(file: Path) -> bool:
    return file.suffix.lower() not in _UNPACKED and not is_whole(file)


def _of_lines(files: Sequence[Path], draw: random.Random) -> Sampled:
    sizes = [file.stat().st_size for file in files]
    total = sum(sizes)
    scanned = _scan(files) if total <= SCANNED_BYTES else None
    picked: list[Picked] = []
    longest = set(scanned.longest) if scanned else set()
    drawn = total - sum(end - begin for _, begin, end in longest)
    used = attempts = 0
    places: list[tuple[int, int, bytes]] = []
    begins = [sum(sizes[:number]) for number in range(len(files))]
    with _Opened(files) as opened:
        while len(places) < MAX_ROWS and (used < MAX_BYTES or len(places) < MIN_ROWS) and attempts < 4 * MAX_ROWS:
            attempts += 1
            place = draw.randrange(total)
            number = bisect_right(begins, place) - 1
            begin, line = _line_around(opened[number], place - begins[number], sizes[number])
            if (number, begin, begin + len(line)) in longest or not line.strip():
                continue  # the longest rows are taken as they are, and a blank line is no row
            places.append((number, begin, line))
            used += len(line)
        for number, begin, line in places:
            entry = _entry(files[number], begin, line, scanned, number)
            picked.append(Picked(entry, len(line), drawn / (len(line) * len(places))))
        for number, begin, end in sorted(longest):
            opened[number].seek(begin)
            line = opened[number].read(end - begin)
            picked.append(Picked(_entry(files[number], begin, line, scanned, number), len(line), 1.0, certain=True))
    estimated = sum(row.weight for row in picked)
    return Sampled(picked, scanned.num_rows if scanned else estimated, scanned is not None)


@dataclass
class _Scan:
    num_rows: int
    longest: list[tuple[int, int, int]]
    """Number of the file, first and last byte of each of the longest rows."""

    ends: list[list[int]]
    """For each file the ends of every thousandth line."""


_STRIDE = 1000


def _scan(files: Sequence[Path]) -> _Scan:
    count, ends = 0, []
    longest: list[tuple[int, int, int, int]] = []
    for number, file in enumerate(files):
        offset, stride = 0, [0]
        with file.open("rb") as stream:
            for line, raw in enumerate(stream, 1):
                size = len(raw)
                if size > 2 or raw.strip():
                    count += 1
                    if len(longest) < NUM_LONGEST or size > longest[0][0]:
                        longest = sorted([*longest, (size, number, offset, offset + size)])[-NUM_LONGEST:]
                offset += size
                if not line % _STRIDE:
                    stride.append(offset)
        ends.append(stride)
    return _Scan(count, [(number, begin, end) for _, number, begin, end in longest], ends)


class _Opened(dict[int, IO[bytes]]):
    """Files that are opened when they are asked for."""

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__()
        self._files = files

    def __missing__(self, number: int) -> IO[bytes]:
        self[number] = self._files[number].open("rb")
        return self[number]

    def __enter__(self) -> "_Opened":
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self.values():
            stream.close()


def _line_around(stream: IO[bytes], place: int, size: int) -> tuple[int, bytes]:
    """The first byte of the line that a byte is in, and the line."""
    begin, step = place, 4096
    while begin > 0:
        low = max(0, begin - step)
        stream.seek(low)
        found = stream.read(begin - low).rfind(b"\n")
        if found >= 0:
            begin = low + found + 1
            break
        begin, step = low, step * 4
    stream.seek(begin)
    return begin, stream.readline(size)


def _entry(file: Path, begin: int, line: bytes, scanned: _Scan | None, number: int) -> Entry:
    """The row as training reads it, with its line if that is known. Broken text is found when the row is read."""
    if scanned is None:
        return Unread(line.decode(errors="replace"), str(file), 0)
    strides = scanned.ends[number]
    stride = bisect_right(strides, begin) - 1
    with file.open("rb") as stream:
        stream.seek(strides[stride])
        before = stream.read(begin - strides[stride]).count(b"\n")
    text = line.removeprefix(b"\xef\xbb\xbf") if begin == 0 else line
    return Unread(text.decode(errors="replace"), str(file), stride * _STRIDE + before + 1)


def _of_first(source: DataSource, files: Sequence[Path], draw: random.Random) -> Sampled:
    """Read rows from the first on, and keep a sample of them (algorithm R, Vitter 1985)."""
    kept: list[Entry] = []
    count = read = 0
    for entry, _ in islice(rows_after(source.path, Cursor(), source.subset, source.split, stream=False), MAX_READ):
        count += 1
        read += _size(entry)
        if len(kept) < MAX_ROWS:
            kept.append(entry)
        elif (place := draw.randrange(count)) < MAX_ROWS:
            kept[place] = entry
    complete = count < MAX_READ
    held = sum(file.stat().st_size * _UNPACKED.get(file.suffix.lower(), 1.0) for file in files)
    num_rows = count if complete else max(count, _rows_of_parquet(files) or round(held * count / max(1, read)))
    chosen, used = [], 0
    draw.shuffle(kept)
    for entry in kept:
        chosen.append(entry)
        used += _size(entry)
        if used >= MAX_BYTES:
            break
    weight = num_rows / len(chosen) if chosen else 0.0
    picked = [Picked(entry, max(1, _size(entry)), weight) for entry in chosen]
    return Sampled(picked, num_rows, complete or _rows_of_parquet(files) is not None, in_order=not complete)


def _rows_of_parquet(files: Sequence[Path]) -> int | None:
    if not all(file.suffix.lower() == ".parquet" for file in files):
        return None
    from pyarrow.parquet import read_metadata  # type: ignore[import-untyped]

    return sum(int(read_metadata(file).num_rows) for file in files)


def _size(entry: Entry) -> int:
    """Characters of a row, roughly as JSON has them."""
    if isinstance(entry, Unread):
        return len(entry.text)
    return sum(len(text) for text in texts_of(entry.value)) if isinstance(entry, Row) else 0


def texts_of(value: object) -> Iterator[str]:
    """Every text within a value of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from texts_of(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts_of(inner)
