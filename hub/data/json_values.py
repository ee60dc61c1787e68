"""JSON values, of which rows are made: their types, and words for them in messages."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from hub.errors import DataError

JsonValue: TypeAlias = object
"""A value as JSON has it: null, true, false, a number, a text, a list, an object. `isinstance` tells which."""

JsonObject: TypeAlias = dict[str, JsonValue]
"""The fields of a row, a message, a tool call."""

_NAMES = {
    "str": "a text",
    "list": "a list",
    "dict": "an object",
    "int": "a number",
    "float": "a number",
    "bytes": "binary data",
    "datetime": "a time",
    "date": "a date",
    "timedelta": "a duration",
    "Decimal": "a decimal number",
}
"""Name of a type in Python -> words."""


@dataclass(frozen=True)
class Unreadable:
    """Stands for a value that Python can't hold, in a column that nothing reads, perhaps."""

    reason: str


def json_if_text(value: JsonValue, where: str, name: str) -> JsonValue:
    """A value that may be written as JSON text, as CSV and some datasets have lists and objects.

    Args:
        value: from a row.
        where: the row, for messages.
        name: the field, for messages.

    Raises:
        DataError: it is a text, but no JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        parsed: JsonValue = json.loads(value)
    except (ValueError, RecursionError):
        raise DataError(f"{where}: {name} is a text that is no JSON: {value[:80]}") from None
    return parsed


def listed(names: Iterable[str]) -> str:
    """Names for a message, not too many."""
    every = list(names)
    return ", ".join(every[:12]) + (", ..." if len(every) > 12 else "") if every else "none"


def kind_of(value: JsonValue) -> str:
    """The type of a value in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, Unreadable):
        return f"a value that Python can't hold ({value.reason})"
    name = type(value).__name__
    return _NAMES.get(name, f"a {name}")
