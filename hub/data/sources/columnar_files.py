"""Parquet and Arrow files to rows, through pyarrow."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hub.data.sources.arrow_rows import BATCH_ROWS, rows_of_table
from hub.data.sources.entries import Entry, Row
from hub.errors import DataError, one_line


def read_parquet(file: Path) -> Iterator[Entry]:
    """The rows of a parquet file.

    Raises:
        DataError: it can't be read.
    """
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            yield from _of_batches(table.iter_batches(batch_size=BATCH_ROWS), file)
    except Exception as error:  # pyarrow has many classes for a damaged file
        raise DataError(f"{file}: can't be read as parquet ({one_line(error)})") from None


def read_arrow(file: Path) -> Iterator[Entry]:
    """The rows of an Arrow file, of either form: the stream that `datasets` writes, or the one with an index.

    Raises:
        DataError: it can't be read.
    """
    import pyarrow

    try:
        with pyarrow.memory_map(str(file)) as data:
            try:
                table = pyarrow.ipc.open_stream(data)
                batches: Iterable[Any] = iter(table)
            except pyarrow.ArrowInvalid:
                table = pyarrow.ipc.open_file(data)
                batches = (table.get_batch(number) for number in range(table.num_record_batches))
            yield from _of_batches(batches, file)
    except Exception as error:
        raise DataError(f"{file}: can't be read as Arrow ({one_line(error)})") from None


def _of_batches(batches: Iterable[Any], file: Path) -> Iterator[Entry]:
    number = 0
    for batch in batches:
        for value in rows_of_table(batch):
            number += 1
            yield Row(value, str(file), number)
