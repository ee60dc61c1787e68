"""The formats of rows, each turned into one form: a conversation of messages, checked.

messages           {"messages": [{"role": "user", "content": "..."}, ...], "tools": [...]}
sharegpt           {"conversations": [{"from": "human", "value": "..."}, ...], "system": "...", "tools": [...]}
alpaca             {"instruction": "...", "input": "...", "output": "...", "system": "...", "history": [["...", "..."]]}
prompt_completion  {"prompt": "...", "completion": "..."}, both texts, or both lists of messages
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from hub.data.read import Row
from hub.errors import DataError, did_you_mean

ROLES = ("system", "user", "assistant", "tool")

_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
}

_MESSAGE_FIELDS = (
    "role",
    "content",
    "tool_calls",
    "tool_call_id",
    "name",
    "reasoning_content",
    "reasoning",
    "thinking",
)


@dataclass(frozen=True)
class Conversation:
    """What a chat template renders, and where it came from."""

    messages: list[dict[str, Any]]
    """`role`, `content` (a text), and where they apply `tool_calls` (their arguments are dicts) and further fields."""

    tools: list[Any] | None
    """JSON schemas of the tools that the model may call."""

    where: str
    """`chats.jsonl:17`."""

    format: str = "messages"
    """The format of the row."""

    unused: tuple[str, ...] = ()
    """Fields that nothing reads; of a message as `messages[].weight` (those are still shown to the chat template)."""


def detect(row: Row) -> str:
    """The format of a row, from the names of its fields.

    Raises:
        DataError: they are those of no format.
    """
    present = set(row.value)
    # Parquet gives every field to every row, null where a row lacks it: fields with a value count first.
    for names in ({name for name in present if row.value[name] is not None}, present):
        for name, spec in _FORMATS.items():
            if names.issuperset(spec.required):
                return name
    allowed = "; ".join(f"{name} has {_fields(spec.required)}" for name, spec in _FORMATS.items())
    known = {field for spec in _FORMATS.values() for field in spec.required}
    near = next((hint for field in sorted(present - known) if (hint := did_you_mean(field, known))), "")
    raise DataError(f"{row.where}: these fields are of no known format: {_fields(row.value)}. Allowed: {allowed}.{near}")


def convert(row: Row, format: str) -> Conversation:
    """Turn a row into a conversation and check it.

    Raises:
        DataError: the row is of another format, or what it says can't be trained on.
    """
    spec = _FORMATS[format]
    if not row.value.keys() >= set(spec.required):
        raise DataError(
            f"{row.where}: this row is not in the format {format}, which has {_fields(spec.required)}. "
            f"Its fields: {_fields(row.value)}. All rows of a file must be in one format"
        )
    messages = spec.convert(row)
    unused = [name for name, value in row.value.items() if name not in spec.known and value is not None]
    unused += sorted({f"messages[].{name}" for message in messages for name in message if name not in _MESSAGE_FIELDS})
    tools = _tools(row) if "tools" in spec.known else None
    return Conversation(_checked(messages, row.where), tools, row.where, format, tuple(unused))


def conversations(rows: Iterable[Row], format: str = "auto") -> Iterator[Conversation]:
    """Turn rows into conversations. With `auto`, the first row of each file decides for that file.

    Raises:
        DataError: as `detect` and `convert`.
    """
    file, current = None, format
    for row in rows:
        if format == "auto" and row.file != file:
            file, current = row.file, detect(row)
        yield convert(row, current)


def _fields(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:12]) + (", ..." if len(listed) > 12 else "") if listed else "none"


def _json_if_text(value: Any, where: str, name: str) -> Any:
    """CSV and some data sets carry lists and objects as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise DataError(f"{where}: {name} is a text that is no JSON: {value[:80]}") from None


def _messages(row: Row) -> list[dict[str, Any]]:
    return _message_list(row.value["messages"], row.where, "messages")


def _message_list(value: Any, where: str, name: str) -> list[dict[str, Any]]:
    turns = _json_if_text(value, where, name)
    if not isinstance(turns, list) or not turns:
        what = "is empty" if turns == [] else f"must be a list of messages, not {_kind(turns)}"
        raise DataError(f"{where}: {name} {what}")
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise DataError(f"{where}: message {number} of {name} must be an object with role and content, not {_kind(turn)}")
    return [{key: item for key, item in turn.items() if item is not None or key in ("role", "content")} for turn in turns]


def _sharegpt(row: Row) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if row.value.get("system"):
        messages.append({"role": "system", "content": row.value["system"]})
    for number, turn in enumerate(_message_list(row.value["conversations"], row.where, "conversations"), 1):
        if "from" not in turn and "role" in turn:
            messages.append(turn)
            continue
        if "from" not in turn or "value" not in turn:
            raise DataError(f"{row.where}: message {number} needs the fields from and value. Its fields: {_fields(turn)}")
        said_by, value = turn["from"], turn["value"]
        if not isinstance(said_by, str) or said_by not in _SHAREGPT_ROLES:
            raise DataError(
                f"{row.where}: message {number} is from {said_by!r}. Allowed: {', '.join(_SHAREGPT_ROLES)}."
                f"{did_you_mean(str(said_by), _SHAREGPT_ROLES)}"
            )
        message = {key: item for key, item in turn.items() if key not in ("from", "value")}
        message |= {"role": _SHAREGPT_ROLES[said_by], "content": value}
        if said_by == "function_call":
            calls = _json_if_text(value, row.where, f"the function call in message {number}")
            message |= {"content": "", "tool_calls": calls if isinstance(calls, list) else [calls]}
        messages.append(message)
    return messages


def _alpaca(row: Row) -> list[dict[str, Any]]:
    value = row.value
    messages: list[dict[str, Any]] = []
    if value.get("system"):
        messages.append({"role": "system", "content": value["system"]})
    history = _json_if_text(value.get("history") or [], row.where, "history")
    if not isinstance(history, list) or any(not isinstance(pair, list) or len(pair) != 2 for pair in history):
        raise DataError(f"{row.where}: history must be a list of pairs [instruction, answer]")
    for asked, answered in history:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    asked, context = value["instruction"], value.get("input")
    if context and isinstance(asked, str):
        if not isinstance(context, str):
            raise DataError(f"{row.where}: input must be a text, not {_kind(context)}")
        asked = f"{asked}\n\n{context}" if asked else context
    return [*messages, {"role": "user", "content": asked}, {"role": "assistant", "content": value["output"]}]


def _prompt_completion(row: Row) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for name, role in (("prompt", "user"), ("completion", "assistant")):
        value = row.value[name]
        if isinstance(value, list):
            messages += _message_list(value, row.where, name)
        else:
            messages.append({"role": role, "content": value})
    return messages


def _tools(row: Row) -> list[Any] | None:
    value = row.value.get("tools")
    if value is None or value == "":
        return None
    tools = _json_if_text(value, row.where, "tools")
    if not isinstance(tools, list) or any(not isinstance(tool, dict) for tool in tools):
        raise DataError(f"{row.where}: tools must be a list of objects (JSON schemas of functions)")
    return tools or None


def _checked(messages: list[dict[str, Any]], where: str) -> list[dict[str, Any]]:
    """The messages with texts as contents and dicts as arguments of tool calls, or a DataError."""
    checked = []
    for number, message in enumerate(messages, 1):
        role = message.get("role")
        if not isinstance(role, str) or role not in ROLES:
            named = f"has the role {role!r}" if "role" in message else f"has no role; its fields: {_fields(message)}"
            raise DataError(f"{where}: message {number} {named}. Allowed: {', '.join(ROLES)}.{did_you_mean(str(role), ROLES)}")
        if role == "system" and number > 1:
            raise DataError(f"{where}: message {number} has the role system. Only the first message may have it")
        calls = _tool_calls(message, number, where)
        message = {key: item for key, item in message.items() if key != "tool_calls"}
        message["content"] = _text(message, number, where, bool(calls))
        checked.append(message | {"tool_calls": calls} if calls else message)
    if not any(message["role"] == "assistant" for message in checked):
        raise DataError(f"{where}: no assistant turn, so there is nothing to train on. Add one, or take the row out")
    return checked


def _text(message: dict[str, Any], number: int, where: str, has_calls: bool) -> str:
    role, content = message["role"], message.get("content")
    named = f"{where}: message {number} ({role})"
    if isinstance(content, list):
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                kind = part.get("type") if isinstance(part, dict) else _kind(part)
                raise DataError(f"{named}: a content part is {kind!r}. Only parts of type text can be trained on")
        content = "".join(part["text"] for part in content)
    if content is None and has_calls:
        return ""
    if not isinstance(content, str):
        what = "has no content" if "content" not in message else f"has content that is {_kind(content)}, not a text"
        raise DataError(f"{named} {what}. Only an assistant with tool_calls may go without. Give a text, or take the row out")
    # A tool may have nothing to say. Anyone else who says nothing is a mistake in the data.
    if not content.strip() and not has_calls and role != "tool":
        raise DataError(f"{named} has empty content. Give a text, or take the message or the row out")
    return content


def _tool_calls(message: dict[str, Any], number: int, where: str) -> list[dict[str, Any]]:
    calls = message.get("tool_calls")
    if not calls:
        return []
    named = f"{where}: message {number}"
    if message["role"] != "assistant":
        raise DataError(f"{named} ({message['role']}) has tool_calls. Only an assistant can call tools")
    calls = _json_if_text(calls, where, f"tool_calls of message {number}")
    if not isinstance(calls, list):
        raise DataError(f"{named}: tool_calls must be a list, not {_kind(calls)}")
    normal = []
    for call in calls:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise DataError(f'{named}: a tool call must be {{"function": {{"name": "...", "arguments": {{...}}}}}}')
        arguments = function.get("arguments")
        arguments = {} if arguments in (None, "") else _json_if_text(arguments, where, f"arguments in message {number}")
        if not isinstance(arguments, dict):
            raise DataError(f"{named}: the arguments of {function['name']} must be an object, not {_kind(arguments)}")
        outside = {key: item for key, item in call.items() if key not in ("function", "name", "arguments")}
        inside = {key: item for key, item in function.items() if key in ("name", "arguments") or function is not call}
        normal.append({"type": "function"} | outside | {"function": inside | {"arguments": arguments}})
    return normal


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names: dict[type, str] = {str: "a text", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")


class _Format(NamedTuple):
    required: tuple[str, ...]
    optional: tuple[str, ...]
    convert: Callable[[Row], list[dict[str, Any]]]

    @property
    def known(self) -> tuple[str, ...]:
        return self.required + self.optional


# In the order in which they are tried: rows that have messages often carry other fields besides.
_FORMATS = {
    "messages": _Format(("messages",), ("tools",), _messages),
    "sharegpt": _Format(("conversations",), ("system", "tools"), _sharegpt),
    "alpaca": _Format(("instruction", "output"), ("input", "system", "history"), _alpaca),
    "prompt_completion": _Format(("prompt", "completion"), ("tools",), _prompt_completion),
}

FORMATS = tuple(_FORMATS)
