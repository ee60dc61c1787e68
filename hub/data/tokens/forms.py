"""The forms in which chat templates take messages.

Most take the hub's own form: contents are texts, and the arguments of calls are objects. Some want texts there (DeepSeek-V3),
some write calls only where the content is null (DeepSeek-R1-Distill), and some of models of images and text take contents as
lists of parts only (SmolVLM, Idefics 3, LLaVA-NeXT), perhaps of some roles (PerceptionLM: not of the system).
"""

import json
import re
from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

from hub.data.formats.examples import Conversation
from hub.data.json_values import JsonObject

_PART_ROLES: tuple[tuple[str, ...], ...] = (
    (),
    ("user", "assistant", "tool"),
    ("system", "user", "assistant", "tool"),
    ("user",),
)
"""Roles whose contents a template may take as parts."""

_READS_NULL = re.compile(r"\bnone\b", re.IGNORECASE)
_READS_PARTS = re.compile(r"""\.text\b|["']text["']""")
_PYTHON_PART = re.compile(r"""["']type["']: ["']text["']""")


class Form(NamedTuple):
    """How messages are given to a template."""

    parts: tuple[str, ...] = ()
    """Roles whose contents are lists of one part, `{"type": "text", "text": ...}`."""

    null_contents: bool = False
    """The content of a message with calls and without text is null."""

    json_arguments: bool = False
    """Arguments of calls are JSON texts."""

    @property
    def is_plain(self) -> bool:
        """Whether contents are texts, as they nearly always are."""
        return not (self.parts or self.null_contents)

    def of(self, messages: list[JsonObject]) -> list[JsonObject]:
        """Messages in this form.

        Args:
            messages: in the hub's own form. They are not changed.
        """
        if self.json_arguments:
            messages = with_json_arguments(messages)
        if not self.is_plain:
            messages = [message | {"content": self._content(message)} for message in messages]
        return messages

    def _content(self, message: JsonObject) -> str | list[JsonObject] | None:
        text = str(message["content"])
        if self.null_contents and has_calls_alone(message):
            return None
        return [{"type": "text", "text": text}] if message["role"] in self.parts else text

    def shows_python(self, rendered: str, conversation: Conversation, template: str) -> bool:
        """Whether a value was rendered as Python writes it, such as `{'x': None}`: the template does not take this form.

        Args:
            rendered: the conversation in this form.
            conversation: what was rendered.
            template: the Jinja source.
        """
        messages = conversation.messages
        if not self.json_arguments:
            for message in messages:
                for call in message.get("tool_calls", ()):  # type: ignore[attr-defined]
                    if (arguments := call["function"]["arguments"]) and str(arguments) in rendered:
                        return True
        if self.parts and _PYTHON_PART.search(rendered):
            return True
        if self.null_contents and "None" in rendered:
            return "None" not in json.dumps([messages, conversation.tools]) + template
        return False


PLAIN = Form()
"""The hub's own form."""

_SCHEMA: JsonObject = {"type": "object", "properties": {"x": {"type": "string", "description": "What."}}, "required": ["x"]}
TOOL: JsonObject = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": _SCHEMA}}
"""Some tool, for templates that ask for one."""

_CALL: JsonObject = {"id": "call0f3a9", "type": "function", "function": {"name": "add", "arguments": {"x": "0f3a9c"}}}
_QUESTION: JsonObject = {"role": "user", "content": "What?"}
_ANSWER: JsonObject = {"role": "assistant", "content": "0f3a9c"}
PROBES = (
    Conversation([_QUESTION, _ANSWER], None, "a small chat"),
    Conversation([{"role": "system", "content": "Be kind."}, _QUESTION, _ANSWER], None, "a small chat"),
    Conversation([_QUESTION, {"role": "assistant", "content": "", "tool_calls": [_CALL]}], [TOOL], "a small chat"),
)
"""Small conversations, which show in which form a template takes messages."""


def joined(forms: Sequence[Form]) -> Form:
    """The form of a template that takes some conversations in these forms."""
    return Form(
        max((form.parts for form in forms), key=len, default=()),
        any(form.null_contents for form in forms),
        any(form.json_arguments for form in forms),
    )


def reads_parts(template: str) -> bool:
    """Whether a template may take contents as lists of parts.

    Args:
        template: the Jinja source.
    """
    return _READS_PARTS.search(template) is not None


def reads_null(template: str) -> bool:
    """Whether a template may ask for a content that is null.

    Args:
        template: the Jinja source.
    """
    return _READS_NULL.search(template) is not None


def forms(conversation: Conversation, has_parts: bool, has_null: bool, first: Form) -> Iterator[Form]:
    """The forms in which a template may take a conversation: one of them, then the others, the hub's own first.

    Args:
        conversation: its messages.
        has_parts: from `reads_parts`.
        has_null: from `reads_null`.
        first: what to try first, as far as it makes a difference for these messages.
    """
    if first == PLAIN:
        yield PLAIN
    has_calls = any("tool_calls" in message for message in conversation.messages)
    has_null = has_null and has_calls and any(map(has_calls_alone, conversation.messages))
    chosen = Form(first.parts, first.null_contents and has_null, first.json_arguments and has_calls)
    if first != PLAIN:
        yield chosen
    choices = [(False, True) if applies else (False,) for applies in (has_null, has_calls)]
    for parts in _PART_ROLES if has_parts else ((),):
        for null_contents, json_arguments in product(*choices):
            if (form := Form(parts, null_contents, json_arguments)) != chosen:
                yield form


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
