"""The forms in which chat templates take messages.

Most take the hub's own form: contents are texts, and the arguments of calls are objects. Some want texts there (DeepSeek-V3),
some write calls only where the content is null (DeepSeek-R1-Distill), and some of models of images and text take contents as
lists of parts only (SmolVLM, Idefics 3, LLaVA-NeXT).
"""

import json
import re
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from hub.data.formats.examples import Conversation
from hub.data.json_values import JsonObject

_READS_NULL = re.compile(r"\bnone\b", re.IGNORECASE)
_READS_PARTS = re.compile(r"""\.text\b|["']text["']""")
_PYTHON_PART = re.compile(r"""["']type["']: ["']text["']""")


class Form(NamedTuple):
    """How messages are given to a template."""

    part_contents: bool = False
    """Contents are lists of one part, `{"type": "text", "text": ...}`."""

    null_contents: bool = False
    """The content of a message with calls and without text is null."""

    json_arguments: bool = False
    """Arguments of calls are JSON texts."""

    @property
    def is_plain(self) -> bool:
        """Whether contents are texts, as they nearly always are."""
        return not (self.part_contents or self.null_contents)

    def of(self, messages: list[JsonObject]) -> list[JsonObject]:
        """Messages in this form.

        Args:
            messages: in the hub's own form. They are not changed.
        """
        if self.json_arguments:
            messages = with_json_arguments(messages)
        if self.null_contents or self.part_contents:
            messages = [message | {"content": self._content(message)} for message in messages]
        return messages

    def _content(self, message: JsonObject) -> str | list[JsonObject] | None:
        text = str(message["content"])
        if self.null_contents and has_calls_alone(message):
            return None
        return [{"type": "text", "text": text}] if self.part_contents else text

    def shows_python(self, rendered: str, conversation: Conversation, template: str) -> bool:
        """Whether a value was rendered as Python writes it, such as `{'x': None}`: the template does not take this form.

        Args:
            rendered: the conversation in this form.
            conversation: what was rendered.
            template: the Jinja source.
        """
        messages = conversation.messages
        calls = [call for message in messages for call in message.get("tool_calls", ())]  # type: ignore[attr-defined]
        arguments = [call["function"]["arguments"] for call in calls]
        if not self.json_arguments and any(value and str(value) in rendered for value in arguments):
            return True
        if self.part_contents and _PYTHON_PART.search(rendered):
            return True
        if self.null_contents and "None" in rendered:
            return "None" not in json.dumps([messages, conversation.tools]) + template
        return False


_SCHEMA: JsonObject = {"type": "object", "properties": {"x": {"type": "string", "description": "What."}}, "required": ["x"]}
TOOL: JsonObject = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": _SCHEMA}}
_CALL: JsonObject = {"id": "call0f3a9", "type": "function", "function": {"name": "add", "arguments": {"x": "0f3a9c"}}}
_QUESTION: JsonObject = {"role": "user", "content": "What?"}
PROBES = (
    Conversation([_QUESTION, {"role": "assistant", "content": "0f3a9c"}], None, "a small chat"),
    Conversation([_QUESTION, {"role": "assistant", "content": "", "tool_calls": [_CALL]}], [TOOL], "a small chat"),
)
"""Small conversations, which show in which form a template takes messages."""


def readable(template: str) -> Form:
    """What a template may read: each field is true where it may take that form.

    Args:
        template: the Jinja source.
    """
    return Form(_READS_PARTS.search(template) is not None, _READS_NULL.search(template) is not None, True)


def forms(conversation: Conversation, reads: Form, first: Form) -> Iterator[Form]:
    """The forms in which a template may take a conversation: one of them, then the others, the hub's own first.

    Args:
        conversation: its messages.
        reads: from `readable`.
        first: what to try first, as far as it makes a difference for these messages.
    """
    has_calls = any("tool_calls" in message for message in conversation.messages)
    has_null = has_calls and any(map(has_calls_alone, conversation.messages))
    applies = reads.part_contents, reads.null_contents and has_null, has_calls
    chosen = Form(*(wanted and there for wanted, there in zip(first, applies, strict=True)))
    yield chosen
    for choice in product(*((False, True) if there else (False,) for there in applies)):
        if choice != chosen:
            yield Form(*choice)


def has_calls_alone(message: JsonObject) -> bool:
    """Whether a message has calls and no text."""
    return "tool_calls" in message and not str(message["content"]).strip()


def with_json_arguments(messages: list[JsonObject]) -> list[JsonObject]:
    """The same messages with the arguments of their calls as JSON texts."""
    return [
        message | {"tool_calls": [_json_arguments(call) for call in message["tool_calls"]]}  # type: ignore[attr-defined]
        if "tool_calls" in message
        else message
        for message in messages
    ]


def _json_arguments(call: JsonObject) -> JsonObject:
    function = call["function"]
    assert isinstance(function, dict)
    return call | {"function": function | {"arguments": json.dumps(function["arguments"], ensure_ascii=False)}}
