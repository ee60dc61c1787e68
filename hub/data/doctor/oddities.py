"""What is unusual in a text or in the order of turns, and may still be intended."""

import re
import unicodedata
from collections.abc import Iterable
from itertools import pairwise

from hub.data.formats.examples import Conversation, Example

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


def is_odd(character: str) -> bool:
    """Whether a character is invisible when it is printed."""
    return unicodedata.category(character) in ("Cc", "Cf", "Co", "Cn") and character not in "\n\t"
