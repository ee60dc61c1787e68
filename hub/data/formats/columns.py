"""`data.columns`: fields of rows and of messages under the names that the formats read."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from hub.config.paths import file_kind
from hub.data.formats.converters import OPTIONAL
from hub.data.formats.messages import KNOWN_FIELDS
from hub.data.formats.missing import MESSAGE_LISTS
from hub.data.json_values import JsonObject, JsonValue, json_if_text, listed
from hub.data.sources.entries import Row
from hub.errors import DataError, did_you_mean

MESSAGE_FIELDS = (*KNOWN_FIELDS, "from", "value")
"""Fields of a message that can be mapped."""

_MAY_LACK = {*OPTIONAL} - {"prompt"}
"""Fields that a row may lack."""

_TABLES = (".csv", ".tsv", ".parquet", ".arrow")
"""Files whose rows all have the same columns."""


def renamed(row: Row, columns: Mapping[str, str]) -> Row:
    """The row with the names that its format reads.

    Args:
        row: as it was read.
        columns: name that a format reads -> name in the file.

    Raises:
        DataError: the row lacks a column that its format needs, or that each row of a table has.
    """
    if not columns:
        return row
    own = {name: column for name, column in columns.items() if name not in MESSAGE_FIELDS}
    inner = {column: name for name, column in columns.items() if name in MESSAGE_FIELDS}
    is_table = file_kind(Path(row.file)) in _TABLES
    for name, column in own.items():
        if column not in row.value and (is_table or name not in _MAY_LACK):
            near = did_you_mean(column, row.value)
            raise DataError(
                f"{row.where}: data.columns.{name}={column}: this row has no field {column}. Its fields: "
                f"{listed(row.value)}.{near}"
            )
    present = {name: column for name, column in own.items() if column in row.value}
    taken = {*present, *present.values()}
    value = {name: item for name, item in row.value.items() if name not in taken}
    value |= {name: row.value[column] for name, column in present.items()}
    if inner:
        value |= {name: _messages(value[name], inner, row.where, name) for name in MESSAGE_LISTS if name in value}
    return Row(value, row.file, row.line)


def has_column(row: Row, name: str, column: str) -> bool:
    """Whether a row has a column that is mapped, or one of its messages has it.

    Args:
        row: as it was read.
        name: what a format reads.
        column: its name in the file.
    """
    if name not in MESSAGE_FIELDS or column in row.value:
        return column in row.value
    return any(isinstance(turn, dict) and column in turn for value in row.value.values() for turn in _turns(value, row.where))


def _turns(value: JsonValue, where: str) -> list[JsonValue]:
    """The items of a list, which may be JSON text."""
    if isinstance(value, str) and value.startswith("[{"):
        with suppress(DataError):
            value = json_if_text(value, where, "")
    return value if isinstance(value, list) else []


def unseen_column(option: str, columns: Mapping[str, str], name: str) -> str:
    """What is wrong with a mapped column that no row has."""
    return f"{option}.{name}={columns[name]}: no row has a field {columns[name]}. Take it out, or name another one"


def column_problems(columns: Mapping[str, str], option: str, known: Collection[str]) -> Iterator[str]:
    """One line for each name of `data.columns` that no format reads.

    Args:
        columns: the option's value.
        option: its full name.
        known: fields of rows that formats read.
    """
    allowed = sorted({*known, *MESSAGE_FIELDS})
    for name, column in columns.items():
        if name not in allowed:
            swapped = f" Type {option}.{column}={name}" if column in allowed else did_you_mean(name, allowed)
            yield f"{option}.{name}={column}: no format reads {name}. Allowed: {', '.join(allowed)}.{swapped}"
    for of_messages in (False, True):
        given = [column for name, column in columns.items() if (name in MESSAGE_FIELDS) == of_messages]
        for column in sorted({column for column in given if given.count(column) > 1}):
            yield f"{option}: two names stand for the column {column}. Give each its own"


def _messages(value: JsonValue, inner: Mapping[str, str], where: str, name: str) -> JsonValue:
    """A list of messages with other names for their fields."""
    turns = json_if_text(value, where, name) if name in ("messages", "conversations") else value
    return [_message(turn, inner) for turn in turns] if isinstance(turns, list) else value


def _message(turn: JsonValue, inner: Mapping[str, str]) -> JsonValue:
    if not isinstance(turn, dict):
        return turn
    taken = {name for key, name in inner.items() if key in turn}
    message: JsonObject = {key: item for key, item in turn.items() if key not in inner and key not in taken}
    return message | {inner[key]: item for key, item in turn.items() if key in inner}
