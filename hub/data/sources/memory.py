"""What a program has in memory, as rows: lists of dictionaries, tables of pandas, polars and pyarrow, datasets."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, Protocol

from hub.data.json_values import JsonValue
from hub.data.sources.arrow_rows import rows_of_dataset, rows_of_table, without_nulls
from hub.errors import ConfigError


class ArrowStream(Protocol):
    """A table that others can read as Arrow's: of pyarrow, polars, DuckDB."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """Return a stream in Arrow's C interface."""


def is_in_memory(data: object) -> bool:
    """Whether `rows_in_memory` takes this."""
    return isinstance(data, Iterable) or hasattr(data, "__arrow_c_stream__") or _is_map_style(data)


def rows_in_memory(data: Any) -> Iterator[Any]:
    """The rows of a list, a generator, a DataFrame, an Arrow table, a `datasets.Dataset`, or the split train of a DatasetDict.

    Nulls that Arrow adds to the objects of a row are left out, and so are the missing values of a DataFrame. What a list or a
    generator gives stays as it is.

    Raises:
        ConfigError: it is a dictionary of columns, or has several datasets and none is called train.
    """
    if isinstance(data, Mapping):
        data = _train_split(data)
    if _is_dataset(data):
        return rows_of_dataset(data)
    if hasattr(data, "to_dict") and hasattr(data, "itertuples"):
        return _rows_of_pandas(data)
    if hasattr(data, "__arrow_c_stream__"):
        import pyarrow  # type: ignore[import-untyped]

        try:
            table = pyarrow.table(data)
        except pyarrow.ArrowInvalid:  # a single column
            if not isinstance(data, Iterable):
                raise ConfigError("data is a column, not a table. Give a table with a column for each field") from None
            return iter(data)
        return chain.from_iterable(map(rows_of_table, table.to_batches()))
    if not isinstance(data, Iterable):
        return (data[number] for number in range(len(data)))
    return iter(data)


def _is_map_style(data: object) -> bool:
    """Whether this is a dataset of torch, which may have rows by their numbers alone."""
    return hasattr(data, "__getitem__") and hasattr(data, "__len__")


def to_json(value: Any) -> JsonValue:
    """For `json.dumps(default=...)`: arrays and numbers of NumPy as lists and numbers, mappings as dictionaries.

    Raises:
        TypeError: JSON has nothing like this value.
    """
    if hasattr(value, "tolist") and hasattr(value, "dtype"):
        plain: JsonValue = value.tolist()
        return plain
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a value of type {type(value).__name__}")


def _is_dataset(data: object) -> bool:
    return hasattr(data, "features") and hasattr(data, "with_format")


def _train_split(data: Mapping[str, Any]) -> Any:
    """The split train of a DatasetDict, or its only one."""
    if not data or not all(map(_is_dataset, data.values())):
        raise ConfigError(
            "data is one dictionary. Give a list with a dictionary for each row. Of a dictionary of columns: "
            "[dict(zip(data, values)) for values in zip(*data.values())]"
        )
    if "train" not in data and len(data) > 1:
        raise ConfigError(f"data has the datasets {', '.join(data)}, and none is called train. Type data=DATA[NAME]")
    return data["train"] if "train" in data else next(iter(data.values()))


def _rows_of_pandas(table: Any) -> Iterator[dict[str, Any]]:
    """The rows of a pandas DataFrame. Its index is no column."""
    columns = [_cells(table.iloc[:, number]) for number in range(table.shape[1])]
    names = [str(name) for name in table.columns]
    if len(set(names)) < len(names):
        raise ConfigError(f"data has two columns of one name: {', '.join(names)}. Give each its own")
    for values in zip(*columns, strict=True):
        yield dict(zip(names, values, strict=True))


def _cells(column: Any) -> Iterator[Any]:
    """The cells of a column. Where they come from Arrow, they are without the nulls that it adds."""
    of_arrow = hasattr(column.dtype, "pyarrow_dtype")
    for value in column:
        if hasattr(value, "tolist") and hasattr(value, "dtype"):  # NumPy's, as pandas reads lists from parquet
            yield without_nulls(_lists(value.tolist()))
        elif isinstance(value, list | dict):
            yield without_nulls(value) if of_arrow else value
        else:
            # Only a missing value differs from itself, or can't be compared (pandas' NA).
            yield None if _is_missing(value) else value


def _is_missing(value: Any) -> bool:
    return type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value)


def _lists(value: Any) -> Any:
    """The same value with lists in place of NumPy's arrays, at any depth."""
    if hasattr(value, "tolist") and hasattr(value, "dtype"):
        value = value.tolist()
    if isinstance(value, list):
        return [_lists(inner) for inner in value]
    return {key: _lists(inner) for key, inner in value.items()} if isinstance(value, dict) else value
