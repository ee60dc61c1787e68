"""The rows of a source, one at a time, each with the file and line that it came from."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from hub.config.paths import is_hub_id
from hub.data.sources.columnar_files import read_arrow, read_parquet
from hub.data.sources.csv_files import read_csv
from hub.data.sources.entries import Cursor, Entry, Row
from hub.data.sources.files import content_kind, data_files
from hub.data.sources.json_files import is_whole, read_whole
from hub.data.sources.model_hub import read_model_hub
from hub.data.sources.text_files import lines, read_text
from hub.errors import DataError

_READERS: dict[str, Callable[[Path], Iterator[Entry]]] = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".txt": read_text,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}
_JSON = (".jsonl", ".ndjson", ".json")


def read_rows(path: str, subset: str | None = None, split: str = "train") -> Iterator[Row]:
    """All rows of a file, a folder of files (those of one split, sorted by name) or a dataset of the model hub.

    Args:
        path: a file, a folder, or an id of the model hub.
        subset: of a dataset of the model hub (which calls it config).
        split: of a dataset of the model hub, or of the files in a folder.

    Raises:
        DataError: nothing is there, or a row can't be read; the message names file and line.
    """
    return (entry.read() for entry, _ in rows_after(path, Cursor(), subset, split, stream=False))


def rows_after(
    path: str, cursor: Cursor, subset: str | None = None, split: str = "train", stream: bool = True
) -> Iterator[tuple[Entry, Cursor]]:
    """The rows of a source behind a position, each with the position behind it.

    Args:
        path: as for `read_rows`.
        cursor: a position that was given before, or `Cursor()` for the first row.
        subset: as for `read_rows`.
        split: as for `read_rows`.
        stream: hold no more than one row in memory.

    Raises:
        DataError: nothing is there, a file holds no row, or a file can only be read as a whole and `stream` forbids it. An
            error in a single row takes the place of the row.
    """
    if is_hub_id(path):
        numbered = enumerate(read_model_hub(path, subset, split, stream), 1)
        for count, value in islice(numbered, cursor.offset, None):
            yield Row(value, path, count), Cursor(0, count)
        return
    for number, file in enumerate(data_files(path, split)):
        if number < cursor.file:
            continue
        begin = cursor if number == cursor.file else Cursor(number)
        empty = begin.offset == 0
        kind = content_kind(file)
        whole = kind in _JSON and is_whole(file)
        if (whole or kind == ".txt") and stream:
            what = "a text file" if kind == ".txt" else "a JSON list"
            raise DataError(f"{file}: {what} is read as a whole and can't be streamed. Write one object per line (JSONL)")
        if kind in _JSON and not whole:
            for line in lines(file, begin.offset, begin.line):
                if line.error or line.text.strip():
                    empty = False
                    yield line.entry(file), Cursor(number, line.end, line.number)
        else:
            entries = read_whole(file) if whole else _READERS[kind or ""](file)
            for count, entry in enumerate(islice(entries, begin.offset, None), begin.offset + 1):
                empty = False
                yield entry, Cursor(number, count)
        if empty:
            raise DataError(f"{file}: the file holds no rows. Give a file with at least one, or take it out of the folder")
