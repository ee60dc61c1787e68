"""The messages of a conversation, checked: roles, texts, tool calls. Every error is one line with its place."""

import json

from hub.data.json_values import JsonObject, JsonValue, json_if_text, kind_of, listed
from hub.errors import DataError, did_you_mean

ROLES = ("system", "user", "assistant", "tool")

OTHER_ROLES = {"developer": "system", "function": "tool", "ipython": "tool", "observation": "tool"}
"""Names that some formats have for a role, and the role."""

CALLING_ROLES = ("function_call", "tool_call")
"""Roles of messages whose content is a call, or a list of calls, as JSON. They are the assistant's."""

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Fields with the thoughts of a message. Chat templates read one of the first two, so both get them, as in transformers."""

KNOWN_FIELDS = (
    "role",
    "content",
    "tool_calls",
    "function_call",
    "tool_call_id",
    "name",
    *REASONING,
    "loss",
    "weight",
)
"""Fields of a message that are read. Only the chat template sees others."""

_OF_LOSS = ("loss", "weight")
_NAMES_ELSEWHERE = {"human": "user", **dict.fromkeys(("gpt", "bot", "chatbot", "ai", "model"), "assistant")}
"""Names of roles in other formats."""
_PLAIN_FIELDS = ("role", "content")


def check_messages(messages: list[JsonObject], where: str) -> tuple[list[JsonObject], frozenset[int]]:
    """Check messages: contents become texts, arguments of tool calls dictionaries.

    Args:
        messages: as they were read.
        where: the row, for messages.

    Returns:
        The messages without the fields `loss` and `weight`, and the places of those in which one of these is false or 0.

    Raises:
        DataError: one of them can't be used, or none is an assistant's.
    """
    checked: list[JsonObject] = []
    without_loss = set()
    for number, message in enumerate(messages, 1):
        if _is_plain(message, number):
            checked.append(message)
            continue
        written = message.get("role")
        message = _in_today_form(message, number, where)
        role = message.get("role")
        if not isinstance(role, str) or role not in ROLES:
            raise DataError(f"{where}: message {number} {_wrong_role(message)}")
        if role == "system" and number > 1:
            raise DataError(
                f"{where}: message {number} has the role {written}. Only the first may be one of the system or developer"
            )
        calls = _tool_calls(message, number, where)
        if not _has_loss(message, number, where):
            without_loss.add(number - 1)
        message = {key: item for key, item in message.items() if key not in ("tool_calls", *_OF_LOSS)}
        message["content"] = _text(message, number, where, bool(calls))
        checked.append(message | {"tool_calls": calls} if calls else message)
    if not any(message["role"] == "assistant" for message in checked):
        raise DataError(f"{where}: no assistant turn, so there is nothing to train on. Add one, or take the row out")
    return checked, frozenset(without_loss)


def _is_plain(message: JsonObject, number: int) -> bool:
    """Whether a message has a role and a text, nothing else, and nothing to complain about, as most have."""
    role, content = message.get("role"), message.get("content")
    if len(message) > len(_PLAIN_FIELDS) or type(role) is not str or type(content) is not str:
        return False
    return role in ROLES and (role != "system" or number == 1) and content != "" and not content.isspace()


def _wrong_role(message: JsonObject) -> str:
    role, allowed = message.get("role"), ", ".join(ROLES)
    if "role" not in message:
        other = ""
        if {"from", "value"} <= message.keys():
            other = " For messages with from and value type data.columns.conversations=messages"
        return f"has no role; its fields: {listed(message)}. Allowed: {allowed}.{other}"
    same = _NAMES_ELSEWHERE.get(str(role).lower())
    return f"has the role {role!r}. Allowed: {allowed}.{f' Did you mean {same}?' if same else did_you_mean(str(role), ROLES)}"


def _in_today_form(message: JsonObject, number: int, where: str) -> JsonObject:
    """A message whose role is one of `ROLES`, whose calls are in `tool_calls` and whose thoughts are where templates look."""
    role, calls = message.get("role"), message.get("function_call")
    if isinstance(role, str) and role in OTHER_ROLES:
        message = message | {"role": OTHER_ROLES[role]}
    if isinstance(role, str) and role in CALLING_ROLES:
        content = json_if_text(message.get("content"), where, f"the {role} in message {number}")
        called = content if isinstance(content, list) else [content]
        message = message | {"role": "assistant", "content": "", "tool_calls": called}
    elif calls is not None:
        if message.get("tool_calls"):
            raise DataError(f"{where}: message {number} has function_call and tool_calls. Give one of them")
        message = {key: item for key, item in message.items() if key != "function_call"} | {"tool_calls": [calls]}
    thoughts = next((message[name] for name in REASONING if message.get(name) is not None), None)
    if thoughts is None:
        return message
    names = [name for name in REASONING if message.get(name) is not None]
    if not isinstance(thoughts, str):
        raise DataError(f"{where}: message {number} has {names[0]} that is {kind_of(thoughts)}, not a text")
    if any(message[name] != thoughts for name in names):
        raise DataError(f"{where}: message {number} has other thoughts in {' than in '.join(names)}. Give one of them")
    return {"thinking": thoughts} | message | {"reasoning_content": thoughts}


def _has_loss(message: JsonObject, number: int, where: str) -> bool:
    """What the fields `loss` (true, false) and `weight` (0, 1) of a message say. True where there are none."""
    has_loss = True
    for name in _OF_LOSS:
        value = message.get(name)
        if value is None:
            continue
        if value not in (0, 1) or not isinstance(value, int | float):
            raise DataError(f"{where}: message {number} has {name}={json.dumps(value)[:40]}. Allowed: true, false, 0, 1")
        if value and message["role"] != "assistant" and name == "loss":
            raise DataError(
                f"{where}: message {number} ({message['role']}) has loss=true. Only the assistant's messages are trained one "
                'by one; "unmask": true in the row trains all but the system message'
            )
        has_loss = has_loss and bool(value)
    return has_loss


def _text(message: JsonObject, number: int, where: str, has_calls: bool) -> str:
    role, content = message["role"], message.get("content")
    named = f"{where}: message {number} ({role})"
    if isinstance(content, list):
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                kind = part.get("type") if isinstance(part, dict) else kind_of(part)
                raise DataError(f"{named}: a content part is {kind!r}. Only parts of type text can be trained on")
        content = "".join(part["text"] for part in content)
    if content is None and has_calls:
        return ""
    if not isinstance(content, str):
        what = "has no content" if "content" not in message else f"has content that is {kind_of(content)}, not a text"
        raise DataError(f"{named} {what}. Only an assistant with tool_calls may go without. Give a text, or take the row out")
    # A tool may return nothing. Any other empty message is an error in the data.
    if not content.strip() and not has_calls and role != "tool":
        raise DataError(f"{named} has empty content. Give a text, or take the message or the row out")
    return content


def _tool_calls(message: JsonObject, number: int, where: str) -> list[JsonObject]:
    calls = message.get("tool_calls")
    if not calls:
        return []
    named = f"{where}: message {number}"
    if message["role"] != "assistant":
        raise DataError(f"{named} ({message['role']}) has tool_calls. Only an assistant can call tools")
    calls = json_if_text(calls, where, f"tool_calls of message {number}")
    if not isinstance(calls, list):
        raise DataError(f"{named}: tool_calls must be a list, not {kind_of(calls)}")
    normal: list[JsonObject] = []
    for call in calls:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise DataError(f'{named}: a tool call must be {{"function": {{"name": "...", "arguments": {{...}}}}}}')
        arguments = function.get("arguments")
        arguments = {} if arguments in (None, "") else json_if_text(arguments, where, f"arguments in message {number}")
        if not isinstance(arguments, dict):
            raise DataError(f"{named}: the arguments of {function['name']} must be an object, not {kind_of(arguments)}")
        outside = {key: item for key, item in call.items() if key not in ("function", "name", "arguments")}
        inside = {key: item for key, item in function.items() if key in ("name", "arguments") or function is not call}
        normal.append({"type": "function"} | outside | {"function": inside | {"arguments": arguments}})
    return normal


def message_list(value: JsonValue, where: str, name: str) -> list[JsonObject]:
    """The messages in a field of a row, which may be JSON text. Fields that are null count as absent.

    Args:
        value: of the field.
        where: the row, for messages.
        name: of the field, for messages.

    Raises:
        DataError: it is no list of objects, or an empty one.
    """
    turns = json_if_text(value, where, name)
    if not isinstance(turns, list) or not turns:
        what = "is empty" if turns == [] else f"must be a list of messages, not {kind_of(turns)}"
        raise DataError(f"{where}: {name} {what}")
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise DataError(f"{where}: message {number} of {name} must be an object with role and content, not {kind_of(turn)}")
    return [_without_nulls(turn) for turn in turns]


def _without_nulls(message: JsonObject) -> JsonObject:
    return {key: item for key, item in message.items() if not _is_missing(item) or key in ("role", "content")}


def _is_missing(value: JsonValue) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def called_functions(message: JsonObject) -> list[str]:
    """The functions that a checked message calls, by their names."""
    calls = message.get("tool_calls")
    return [str(call["function"]["name"]) for call in calls] if isinstance(calls, list) else []


def arguments_of(message: JsonObject) -> list[tuple[str, JsonObject]]:
    """The functions that a checked message calls, by their names, each with its arguments."""
    calls = message.get("tool_calls")
    return [(str(call["function"]["name"]), call["function"]["arguments"]) for call in calls] if isinstance(calls, list) else []
