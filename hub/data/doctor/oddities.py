"""What is unusual in a text or in the order of turns, and may still be intended."""

import re
import unicodedata
from collections.abc import Iterable
from itertools import pairwise

from hub.data.formats.examples import Conversation, Example
from hub.data.formats.messages import arguments_of
from hub.data.json_values import JsonObject

BROKEN_TEXT = {
    "a character that could not be decoded (U+FFFD)": re.compile("\ufffd"),
    "UTF-8 that was read as another encoding (as in Ã© or â€™)": re.compile(
        "Ã[\u0080-\u00bf]|â€[\u0080-\u00bf™œ\u009d]|Â[\u00a0-\u00bf]"
    ),
    "a control character": re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]"),
    "a byte order mark or zero width space": re.compile("[\ufeff\u200b\u2060]"),
    "a character for private use": re.compile("[\ue000-\uf8ff]"),
}
"""What went wrong when a text was written or read -> how it shows."""


def odd_order(example: Example) -> Iterable[str]:
    """What is unusual in the order of the turns. A tool's message belongs to the assistant's turn."""
    if not isinstance(example, Conversation):
        return
    roles = [message["role"] for message in example.messages if message["role"] != "system"]
    if roles[0] == "assistant":
        yield "the assistant speaks first"
    if roles[-1] not in ("assistant", "tool"):
        yield "the last message is the user's, and nothing answers it"
    if roles[-1] == "tool":
        yield "the last message is a tool's, and nothing answers it"
    if any(a == b == "user" for a, b in pairwise(roles)):
        yield "the user speaks twice in a row"
    if any(a == b == "assistant" for a, b in pairwise(roles)):
        yield "the assistant speaks twice in a row"
    calls = [bool(message.get("tool_calls")) for message in example.messages if message["role"] != "system"]
    if any(role == "tool" and roles[n - 1] != "tool" and not (n and calls[n - 1]) for n, role in enumerate(roles)):
        yield "a tool answers that was not called"
    if any(calls) and not example.tools:
        yield "a tool is called, but the row has no tools"
    yield from _odd_arguments(example)


def _odd_arguments(example: Conversation) -> Iterable[str]:
    """What a library may have made of the arguments of calls: nulls, and fractions of whole numbers."""
    types = {name: kind for tool in example.tools or () for name, kind in _types(tool).items()}
    for message in example.messages:
        for function, arguments in arguments_of(message):
            for name, value in arguments.items():
                kind = types.get(f"{function}.{name}", "")
                if value is None and "null" not in kind:
                    yield "an argument of a call is null. Libraries write null for an argument that is not there"
                elif isinstance(value, float) and kind == "integer":
                    yield (
                        "an argument is a fraction such as 3.0, and its schema says integer. Pandas makes fractions of whole "
                        "numbers: give the path of the file"
                    )


def _types(tool: JsonObject) -> dict[str, str]:
    """`function.parameter` -> its type in the schema, or its types."""
    function = tool.get("function", tool)
    if not isinstance(function, dict) or not isinstance(parameters := function.get("parameters"), dict):
        return {}
    properties = parameters.get("properties")
    known = properties.items() if isinstance(properties, dict) else ()
    return {f"{function.get('name')}.{name}": str(schema.get("type")) for name, schema in known if isinstance(schema, dict)}


def is_odd(character: str) -> bool:
    """Whether a character is invisible when it is printed."""
    return unicodedata.category(character) in ("Cc", "Cf", "Co", "Cn") and character not in "\n\t"
