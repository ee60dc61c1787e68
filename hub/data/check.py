"""Checks the first rows without a heavy import, to find errors before a run is started."""

from typing import NamedTuple

from hub.config.data import DataConfig, DataSource
from hub.config.paths import file_kind, is_hub_id
from hub.data.formats.file_format import FileFormats
from hub.data.formats.roles import Wanted, check_example, check_format
from hub.data.sources.entries import Cursor
from hub.data.sources.files import data_files
from hub.data.sources.read import rows_after
from hub.errors import DataError
from hub.system.bounds import memory_bound

_SLOW = (".parquet", ".arrow")

LOOK_MEMORY = 160 * 2**20
"""Bytes that looking at data may take. What does not fit, such as a JSON list of 100 MB, is left to the workers."""

LOOK_BYTES = 64 * 2**20
"""Bytes of a file after which the look ends."""


class Checked(NamedTuple):
    """The result of `check_rows`."""

    num_rows: int | None
    """Good rows. None where counting them needs pyarrow, or more memory."""

    complete: bool
    """Whether there are no further rows."""


def check_rows(source: DataSource, data: DataConfig, limit: int = 20_000, wanted: Wanted | None = None) -> Checked:
    """Read and convert the first rows, to find errors before training is started.

    Args:
        source: of parquet and Arrow files only the existence is checked, of datasets of the model hub nothing.
        data: what happens to bad rows, and which column has raw documents.
        limit: the number of rows after which to stop.
        wanted: the samples that a row may have, and for which algorithm. None: any.

    Raises:
        DataError: the first error, with file and line, or that there is no good row.
    """
    if wanted is not None:
        check_format(source, wanted)
    try:
        with memory_bound(LOOK_MEMORY):
            return _look(source, data, limit, wanted)
    except MemoryError:
        return Checked(None, False)  # the workers read all of it, and have more memory


def _look(source: DataSource, data: DataConfig, limit: int, wanted: Wanted | None) -> Checked:
    if is_hub_id(source.path) or any(file_kind(file) in _SLOW for file in data_files(source.path, source.split)):
        return Checked(None, False)
    num_rows, formats = 0, FileFormats(source, data)
    for number, (entry, cursor) in enumerate(rows_after(source.path, Cursor(), split=source.split, stream=False)):
        if number == limit or (cursor.line and cursor.offset > LOOK_BYTES):
            return Checked(num_rows, False)
        try:
            example = formats.example(entry)
            num_rows += 1
        except DataError:
            if data.on_bad_row == "error":
                raise
            continue
        if wanted is not None:
            check_example(example, wanted)
    # Other sources, and the evaluation set, may lack a column that they share with this one.
    if source.path == data.path and (unseen := formats.unseen_columns()):
        raise DataError(f"{source.path}: {unseen[0]}")
    if not num_rows:
        raise DataError(f"{source.path}: none of its rows can be used. Type data.on_bad_row=error to see why")
    return Checked(num_rows, True)
