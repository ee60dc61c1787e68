"""Small chats whose every text is a marker, so that a rendering of them can be cut at its texts."""

from collections.abc import Iterator
from dataclasses import dataclass

from hub.data.json_values import JsonObject
from hub.tasks.export.ollama.values import READ_BY_TEMPLATES

START, USER, ASSISTANT, CALL, TOOL, END = "", "user", "assistant", "calls", "tool", "end"
"""Kinds of messages: the start of the chat, those of roles, answers with calls of tools, and the end behind the last one."""

SYSTEM_TEXT = "zqsystemzq"


@dataclass(frozen=True)
class Chat:
    """A small chat of markers."""

    kinds: tuple[str, ...]
    system: bool = False
    tools: bool = False
    with_content: bool = False
    """Whether messages with calls have a text, too."""

    thoughts: bool = False
    num_calls: int = 1
    think: bool | None = None

    def messages(self) -> list[JsonObject]:
        found: list[JsonObject] = [{"role": "system", "content": SYSTEM_TEXT}] if self.system else []
        for place, kind in enumerate(self.kinds):
            message: JsonObject = {"role": "assistant" if kind == CALL else kind, "content": marker(place)}
            if kind == CALL:
                message["tool_calls"] = [_call(place, number) for number in range(self.num_calls)]
                message["content"] = marker(place) if self.with_content else ""
            if kind == TOOL:
                message |= {"tool_call_id": _id(place - 1, 0), "name": name_of_call(place - 1, 0)}
            if self.thoughts and kind in (ASSISTANT, CALL):
                message |= {name: thought(place) for name in READ_BY_TEMPLATES}
            found.append(message)
        return found


def marker(place: int) -> str:
    """The text of a message."""
    return f"zq{place:02d}zq"


def thought(place: int) -> str:
    """The thought of an answer."""
    return f"zqthought{place:02d}zq"


def name_of_call(place: int, number: int) -> str:
    """The name of the tool that a call asks for."""
    return f"zqname{place:02d}{number}zq"


def _id(place: int, number: int) -> str:
    return f"zqid{place:02d}{number}zq"


def arguments_of_call(place: int, number: int) -> JsonObject:
    """The arguments of a call."""
    return {"a": f"zqvalue{place:02d}{number}zq", "b": 7}


def _call(place: int, number: int) -> JsonObject:
    function: JsonObject = {"name": name_of_call(place, number), "arguments": arguments_of_call(place, number)}
    return {"type": "function", "id": _id(place, number), "function": function}


def _tool(name: str) -> JsonObject:
    properties: JsonObject = {
        "a": {"type": "string", "description": "A text."},
        "b": {"type": "integer", "description": "A number."},
    }
    parameters: JsonObject = {"type": "object", "properties": properties, "required": ["a"]}
    return {"type": "function", "function": {"name": name, "description": "A tool.", "parameters": parameters}}


PROBED_TOOLS = [_tool("zqtool1zq"), _tool("zqtool2zq")]


def plain_chats() -> Iterator[Chat]:
    """Small chats without tools."""
    u, a = USER, ASSISTANT
    for kinds in [(u,), (u, a, u), (u, a, u, a, u), (a, u)]:
        for system in (False, True):
            for think in (None, True, False):
                yield Chat(kinds, system, think=think)
            if a in kinds:
                yield Chat(kinds, system, thoughts=True)


def chats_with_tools() -> Iterator[Chat]:
    """Small chats with tools."""
    u, a, c, t = USER, ASSISTANT, CALL, TOOL
    for system in (False, True):
        for kinds in [
            (u,),
            (u, a, u),
            (u, a, u, a, u),
            (u, c, t),
            (u, c, t, a, u),
            (u, c, t, c, t),
            (u, a, u, c, t),
            (u, c, t, a, u, c, t),
        ]:
            yield Chat(kinds, system, tools=True)
            if c in kinds:
                yield Chat(kinds, system, tools=True, with_content=True)
                yield Chat(kinds, system, tools=True, thoughts=True)
                yield Chat(kinds, system, tools=True, thoughts=True, with_content=True)
        yield Chat((u, c, t, t), system, tools=True, num_calls=2)
    for think in (True, False):
        yield Chat((u,), tools=True, think=think)
        yield Chat((u, c, t), tools=True, think=think)
