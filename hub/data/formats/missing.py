"""Values of a row that nobody wrote: NaN, as pandas has for a missing cell, and the nulls of a table that was written as JSON.

Arrow gives every object the fields of all rows, null where a row lacks them. `hub.data.sources.arrow_rows` leaves these out.
`Dataset.to_json` and `to_list` write them down, so that they look like any other null. Two signs give them away:

- all messages of a row have the same fields, and a message that can't call has `tool_calls`: null;
- a schema of a tool has a null where JSON Schema has none, as in `"properties": {"day": null}`.
"""

from collections.abc import Mapping

from hub.data.json_values import JsonObject, JsonValue
from hub.data.sources.arrow_rows import without_nulls
from hub.data.sources.entries import Row

MESSAGE_LISTS = ("messages", "conversations", "prompt", "completion", "chosen", "rejected")
"""Fields of a row that may hold messages."""

_MAY_BE_NULL = ("default", "const")
"""What a JSON Schema may have a null for."""

_CALLS = ("tool_calls", "function_call")


def without_missing(row: Row) -> Row:
    """The row with null for NaN, and without the nulls that a table has added."""
    value = row.value
    if any(item != item for item in value.values() if isinstance(item, float)):
        value = {name: None if isinstance(item, float) and item != item else item for name, item in value.items()}
    of_table = [name for name in MESSAGE_LISTS if name in value and _is_of_table(value[name])]
    tools = value.get("tools")
    if of_table:
        value = value | {name: [_of_message(each) for each in _items(value[name])] for name in of_table}
    if isinstance(tools, list) and (of_table or any(map(_has_null_schema, tools))):
        value = value | {"tools": without_nulls(tools)}
    return row if value is row.value else Row(value, row.file, row.line)


def _is_of_table(turns: JsonValue) -> bool:
    """Whether messages have the nulls of a table."""
    if not isinstance(turns, list):
        return False
    messages = [turn for turn in turns if isinstance(turn, dict)]
    for message in messages:
        if None in message.values():
            break
    else:
        return False
    return len({frozenset(message) for message in messages}) == 1 and any(
        message.get("role", message.get("from")) not in ("assistant", "gpt") and name in message and message[name] is None
        for message in messages
        for name in _CALLS
    )


def _of_message(message: JsonValue) -> JsonValue:
    if not isinstance(message, dict):
        return message
    kept: JsonObject = {name: item for name, item in message.items() if item is None and name not in _CALLS}
    fields = without_nulls(message)
    assert isinstance(fields, dict)
    return {name: fields.get(name) for name in message if name in fields or name in kept}


def _has_null_schema(tool: JsonValue, inside: bool = False) -> bool:
    """Whether the parameters of a tool have a null where JSON Schema has none."""
    if isinstance(tool, Mapping):
        return any(
            (inside and item is None and name not in _MAY_BE_NULL) or _has_null_schema(item, inside or name == "parameters")
            for name, item in tool.items()
        )
    return isinstance(tool, list) and any(_has_null_schema(item, inside) for item in tool)


def _items(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else []
