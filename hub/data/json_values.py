"""JSON values, of which rows are made: their types, and words for them in messages."""

import json
import math
import re
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
    "tuple": "a list",
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


LEFT_OUT = "left out"
"""The one field of an object that stands for a value which JSON can't hold: its type, in words."""

_OF_PYTHON = re.compile(r"[\[{(]+\s*(?:'|array\()")
"""How `str` and CSV files of pandas write lists and objects."""


def unique_fields(pairs: list[tuple[str, JsonValue]]) -> JsonObject:
    """The fields of a JSON object, for `object_pairs_hook`.

    Raises:
        ValueError: one is there twice, so that one of its values would be lost.
    """
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {twice} is twice in one object")
    return fields


DECODER = json.JSONDecoder(object_pairs_hook=unique_fields)
"""Reads JSON, but no object with a field twice."""


def has_half_character(text: str) -> bool:
    """Whether a text has half of a character (a lone surrogate), which is no Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def is_of_python(text: str) -> bool:
    """Whether a text seems to be a list or an object as Python prints it, which is no JSON: `[{'role': ...`."""
    return _OF_PYTHON.match(text) is not None


WRITE_JSON = "This is how Python prints objects. Write the rows as JSONL, or the field with json.dumps"


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
        parsed: JsonValue = DECODER.decode(value)
    except (ValueError, RecursionError) as error:
        twice = f" ({error})" if str(error).startswith("the field ") else ""
        advice = f". {WRITE_JSON}" if is_of_python(value) else ""
        raise DataError(f"{where}: {name} is a text that is no JSON{twice}: {value[:80]}{advice}") from None
    return parsed


def listed(names: Iterable[str]) -> str:
    """Names for a message, not too many."""
    every = list(names)
    return ", ".join(every[:12]) + (", ..." if len(every) > 12 else "") if every else "none"


def kind_of(value: JsonValue) -> str:
    """The type of a value in words."""
    if value is None:
        return "null"
    if isinstance(value, dict) and value.keys() == {LEFT_OUT}:
        return str(value[LEFT_OUT])
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN (a missing value)" if value != value else "infinite"
    if isinstance(value, Unreadable):
        return f"a value that Python can't hold ({value.reason})"
    name = type(value).__name__
    return _NAMES.get(name, f"a {name}")
