"""Arrow tables to rows, without what Arrow adds to them.

Arrow gives every struct the fields of all rows, null where a row lacks them. Nobody wrote these nulls, so they are left out:
the same rows give the same tokens, whatever holds them. A null that was written can't be told from them. Values of the type
arrow.json (`Json` of the library `datasets`) keep their fields and nulls.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

from hub.data.json_values import JsonObject, JsonValue, Unreadable
from hub.errors import one_line

Convert = Callable[[Any], JsonValue]
BATCH_ROWS = 1000


def rows_of_table(table: Any) -> Iterator[JsonObject]:
    """The rows of a pyarrow Table or RecordBatch. A column that Python can't hold has `Unreadable` in each row."""
    names = list(table.schema.names)
    for values in zip(*map(_values, table.columns), strict=True):
        yield dict(zip(names, values, strict=True))


def rows_of_dataset(dataset: Any) -> Iterator[JsonObject]:
    """The rows of a `datasets.Dataset` or `IterableDataset`, as their Arrow tables have them. Images and sounds stay bytes.

    A dataset with a transform of its own is iterated instead, and so is a stream whose types are unknown.
    """
    form = getattr(dataset, "format", None)
    form = form if isinstance(form, dict) else {}
    if dataset.features is None or form.get("type") == "custom":
        for row in dataset:
            yield {name: without_nulls(value) for name, value in dict(row).items()}
        return
    columns = form.get("columns")
    tables = dataset.with_format("arrow", columns=columns) if columns is not None else dataset.with_format("arrow")
    for table in tables.iter(batch_size=BATCH_ROWS):
        yield from rows_of_table(table)


def without_nulls(value: Any) -> JsonValue:
    """The same value without the null fields of its objects, at any depth. Nulls in lists stay."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _values(column: Any) -> list[JsonValue]:
    """The values of one column."""
    try:
        values: list[JsonValue] = column.to_pylist()
    except Exception as error:  # times beyond Python's, time zones and names that it lacks: each has another class
        return [Unreadable(one_line(error))] * len(column)
    return _each(_converter(column.type))(values)


def _each(convert: Convert | None) -> Callable[[list[Any]], list[JsonValue]]:
    if convert is None:
        return list
    return lambda values: [None if value is None else convert(value) for value in values]


def _converter(kind: Any) -> Convert | None:
    """What turns a value of an Arrow type into JSON. None: it is JSON already, or of a type that JSON lacks."""
    from pyarrow import types  # type: ignore[import-untyped]

    if getattr(kind, "extension_name", None) == "arrow.json":
        return _json
    if types.is_dictionary(kind):
        return _converter(kind.value_type)
    if types.is_map(kind):
        return _map_converter(kind)
    if types.is_nested(kind) and hasattr(kind, "value_type"):  # every kind of list
        inner = _converter(kind.value_type)
        return _each(inner) if inner else None
    if types.is_struct(kind):
        fields = {kind.field(number).name: _converter(kind.field(number).type) for number in range(kind.num_fields)}
        return lambda value: {
            name: convert(value[name]) if convert else value[name]
            for name, convert in fields.items()
            if value[name] is not None
        }
    return None


def _json(text: str) -> JsonValue:
    try:
        value: JsonValue = json.loads(text)
    except (ValueError, RecursionError):  # `datasets` stores a text that its lenient reader takes for JSON as it is: 007
        return text
    return value


def _map_converter(kind: Any) -> Convert:
    """An Arrow map is a list of pairs, and an object in JSON."""
    inner = _converter(kind.item_type)

    def convert(pairs: list[tuple[Any, Any]]) -> JsonValue:
        return {str(key): inner(value) if inner and value is not None else value for key, value in pairs}

    return convert
