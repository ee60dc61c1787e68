"""The rows of one source to what is trained on: columns renamed, the format of each file detected, each row converted."""

from collections import Counter
from itertools import islice

from hub.config.data import DataConfig, DataSource
from hub.config.option import AUTO
from hub.config.paths import is_hub_id
from hub.data.formats.columns import has_column, renamed, unseen_column
from hub.data.formats.detect import PREFERENCE, convert, detect
from hub.data.formats.examples import RowExample
from hub.data.formats.missing import without_missing
from hub.data.formats.preferences import REFUSED
from hub.data.sources.entries import Cursor, Entry, Row
from hub.data.sources.read import rows_after
from hub.errors import DataError

NUM_ROWS = 50
"""First rows of a file. The format of most of them is that of the file."""


class FileFormats:
    """Converts the rows of one source. Each file has one format, which its first rows tell."""

    def __init__(self, source: DataSource, data: DataConfig) -> None:
        """Args:
        source: where the rows come from, their format and the names of their columns.
        data: which column has raw documents, and whether rows are streamed.
        """
        self._source, self._data = source, data
        self._formats: dict[str, str | None] = {}
        self._unseen = set(source.columns)

    def example(self, entry: Entry) -> RowExample:
        """What a row is before it becomes tokens.

        Raises:
            DataError: the row can't be used.
        """
        row = self._read(entry)
        return convert(row, self._format(row), self._data.text_column)

    def holds_preferences(self, entry: Entry) -> bool:
        """Whether the fields of a row say that it is a preference, and no format is asked for."""
        if self._data.text_column is not None or self._source.format != AUTO:
            return False
        try:
            return detect(self._read(entry)) == PREFERENCE
        except DataError:
            return False

    def unseen_columns(self) -> list[str]:
        """What is wrong with each name of `data.columns` that no row has had so far."""
        return [unseen_column("data.columns", self._source.columns, name) for name in sorted(self._unseen)]

    def _read(self, entry: Entry) -> Row:
        row = entry.read()
        if self._unseen:
            self._unseen -= {name for name in self._unseen if has_column(row, name, self._source.columns[name])}
        return without_missing(renamed(row, self._source.columns))

    def _format(self, row: Row) -> str:
        """The format of a row's file, whose first rows may be long past."""
        if self._data.text_column is not None:
            return "document"
        if self._source.format != AUTO:
            return self._source.format
        if row.file not in self._formats:
            self._formats[row.file] = self._detect(row)
        format = self._formats[row.file] or detect(row)
        if format == PREFERENCE:  # an algorithm that learns from them asks for this format
            raise DataError(f"{row.where}: {REFUSED}")
        return format

    def _detect(self, row: Row) -> str | None:
        """The format of most of the first rows of a file. None: they are of no known format."""
        found: Counter[str] = Counter()
        stream = self._data.streaming and is_hub_id(row.file)
        entries = rows_after(row.file, Cursor(), self._source.subset, self._source.split, stream=stream)
        for entry, _ in islice(entries, NUM_ROWS):
            try:
                found[detect(without_missing(renamed(entry.read(), self._source.columns)))] += 1
            except DataError:
                continue
        return found.most_common(1)[0][0] if found else None
