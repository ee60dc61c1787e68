"""The rows of one source to what is trained on: columns renamed, the format of each file detected, each row converted."""

from collections import Counter
from itertools import islice

from hub.config.data import DataConfig, DataSource
from hub.config.option import AUTO
from hub.config.paths import is_hub_id
from hub.data.formats.columns import renamed
from hub.data.formats.detect import convert, detect
from hub.data.formats.examples import RowExample
from hub.data.sources.entries import Cursor, Entry, Row
from hub.data.sources.read import rows_after
from hub.errors import DataError

NUM_ROWS = 50
"""Rows of a file from which its format is told: most of them are in it."""


class FileFormats:
    """Converts the rows of one source. Each file has one format, which its first rows tell."""

    def __init__(self, source: DataSource, data: DataConfig) -> None:
        """Args:
        source: where the rows come from, their format and the names of their columns.
        data: which column has raw documents, and whether rows are streamed.
        """
        self._source, self._data = source, data
        self._formats: dict[str, str | None] = {}

    def example(self, entry: Entry) -> RowExample:
        """What a row is before it becomes tokens.

        Raises:
            DataError: the row can't be used.
        """
        row = renamed(entry.read(), self._source.columns)
        return convert(row, self._format(row), self._data.text_column)

    def _format(self, row: Row) -> str:
        """The format of a row's file, whose first rows may be long past."""
        if self._data.text_column is not None:
            return "document"
        if self._source.format != AUTO:
            return self._source.format
        if row.file not in self._formats:
            self._formats[row.file] = self._detect(row)
        return self._formats[row.file] or detect(row)

    def _detect(self, row: Row) -> str | None:
        """The format of most of the first rows of a file. None: they are of no known format."""
        found: Counter[str] = Counter()
        stream = self._data.streaming and is_hub_id(row.file)
        entries = rows_after(row.file, Cursor(), self._source.subset, self._source.split, stream=stream)
        for entry, _ in islice(entries, NUM_ROWS):
            try:
                found[detect(renamed(entry.read(), self._source.columns))] += 1
            except DataError:
                continue
        return found.most_common(1)[0][0] if found else None
