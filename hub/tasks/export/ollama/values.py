"""What a template of Ollama gets for a chat: https://github.com/ollama/ollama, template/template.go and api/types.go."""

from collections.abc import Sequence
from typing import Any

from hub.data.formats.messages import REASONING
from hub.data.json_values import JsonObject
from hub.tasks.export.ollama.go_template import Struct

READ_BY_TEMPLATES = REASONING[:2]
"""Fields of thoughts. Rows have both, since templates read one or the other."""

THOUGHTS = READ_BY_TEMPLATES[0]


def values(messages: Sequence[JsonObject], tools: Sequence[JsonObject] | None, think: bool | None = None) -> dict[str, Any]:
    """The value of `.`.

    Args:
        messages: with `role` and `content`, and where they apply `tool_calls` and `reasoning_content`.
        tools: JSON schemas of functions.
        think: what the request says of thoughts. None: nothing.
    """
    return {
        "System": "\n\n".join(str(one["content"]) for one in messages if one["role"] == "system"),
        "Messages": _collated(messages),
        "Tools": [_tool(tool) for tool in tools or ()],
        "Response": "",
        "Think": bool(think),
        "ThinkLevel": "",
        "IsThinkSet": think is not None,
    }


def _collated(messages: Sequence[JsonObject]) -> list[Struct]:
    """Messages, where those of one role that follow each other are one, but for results of tools."""
    found: list[Struct] = []
    for given in messages:
        one = _message(given)
        if found and found[-1]["Role"] == one["Role"] != "tool":
            found[-1]["Content"] += "\n\n" + one["Content"]
        else:
            found.append(one)
    return found


def _message(given: JsonObject) -> Struct:
    calls: Any = given.get("tool_calls") or ()
    return Struct(
        Role=str(given["role"]),
        Content=str(given["content"]),
        Thinking=str(given.get(THOUGHTS) or ""),
        Images=[],
        ToolCalls=[
            Struct(
                ID=str(call.get("id", "")),
                Function=Struct(Index=place, Name=call["function"]["name"], Arguments=dict(call["function"]["arguments"])),
            )
            for place, call in enumerate(calls)
        ],
        ToolName=str(given.get("name") or ""),
        ToolCallID=str(given.get("tool_call_id") or ""),
    )


def _tool(tool: Any) -> Struct:
    function = tool["function"]
    parameters = function.get("parameters") or {}
    properties = {name: _property(one) for name, one in (parameters.get("properties") or {}).items()}
    return Struct(
        Type=str(tool.get("type", "function")),
        Function=Struct(
            Name=str(function["name"]),
            Description=str(function.get("description", "")),
            Parameters=Struct(
                Type=str(parameters.get("type", "")),
                Required=list(parameters.get("required") or ()),
                Properties=properties,
            ),
        ),
    )


def _property(given: Any) -> Struct:
    found = Struct(
        Type=given.get("type", ""),
        Items=given.get("items"),
        Description=str(given.get("description", "")),
        Enum=list(given.get("enum") or ()),
    )
    names = ("anyOf", "type", "items", "description", "enum", "properties")
    found.json = {name: given[name] for name in names if given.get(name)}
    return found
