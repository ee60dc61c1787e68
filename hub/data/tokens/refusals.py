"""What to type where a chat template refuses a conversation, or leaves out what must be trained."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from hub.config.data import TEMPLATES
from hub.data.formats.examples import Conversation
from hub.data.json_values import JsonObject
from hub.data.tokens.chat_template import RefusedError
from hub.data.tokens.forms import TOOL
from hub.data.tokens.omissions import LeftOutError, similar_template
from hub.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OF_JINJA = {
    "Object of type generator is not JSON serializable": "The template gives tojson what a filter such as map returns, and "
    "transformers can't write that. Put | list before | tojson in the template, and type data.template=FILE.jinja",
    "of 'list' object is unsafe": "transformers lets no template change a list. Build a new one in the template, and type "
    "data.template=FILE.jinja",
    "of 'dict' object is unsafe": "transformers lets no template change an object. Build a new one in the template, and type "
    "data.template=FILE.jinja",
}
"""What a template may raise in the sandbox of transformers, and what to do."""

_TEXT_BESIDE = (
    "It takes calls only in messages without a text of their own. Take that text out, or type data.template=FILE.jinja with a "
    "template that writes both"
)
_ONE_CALL = (
    "It takes one call a message. Give each call a message of its own, with its result behind it, or type "
    "data.template=FILE.jinja with a template that writes all"
)


def explained(
    error: DataError,
    conversation: Conversation,
    tokenizer: "PreTrainedTokenizerBase",
    is_taken: Callable[[Conversation], bool],
) -> DataError:
    """The error of a template that does not take a conversation, with what to type where that is known.

    Args:
        error: the template's own.
        conversation: what it does not take.
        tokenizer: the one with the template.
        is_taken: whether it takes another conversation.
    """
    if not isinstance(error, LeftOutError | RefusedError):
        return error
    messages, said = conversation.messages, str(error).rstrip(".!")
    for change, advice in ((_without_text, _TEXT_BESIDE), (_with_one_call, _ONE_CALL)):
        changed = [change(message) if "tool_calls" in message else message for message in messages]
        if changed != messages and is_taken(replace(conversation, messages=changed)):
            return DataError(f"{error.what if isinstance(error, LeftOutError) else said}. {advice}")
    if isinstance(error, LeftOutError):
        return error
    for raised, advice in _OF_JINJA.items():
        if raised in said:
            return DataError(f"{said}. {advice}")
    together = _together(messages)
    if len(together) < len(messages) and is_taken(replace(conversation, messages=together)):
        return DataError(
            f"{said}. It takes no two messages of one role behind each other. Join them, or type data.template=FILE.jinja"
        )
    similar = similar_template(tokenizer)
    of_system = messages[0]["role"] == "system" and similar in TEMPLATES
    if of_system and ("system role" in said.lower() or is_taken(replace(conversation, messages=messages[1:]))):
        return DataError(f"{said}. It takes no system message: type data.template={similar}, which writes it")
    if conversation.tools is None and is_taken(replace(conversation, tools=[TOOL])):
        return DataError(f"{said}. It takes rows with tools only. Give the row tools, or type data.template=FILE.jinja")
    return error


def _together(messages: list[JsonObject]) -> list[JsonObject]:
    """The messages, those of the user or the assistant that follow each other as one."""
    found: list[JsonObject] = []
    for message in messages:
        before = found[-1] if found else {}
        is_same = message["role"] == before.get("role") and message["role"] != "tool"
        if is_same and not ("tool_calls" in message or "tool_calls" in before):
            found[-1] = before | {"content": f"{before['content']}\n\n{message['content']}"}
        else:
            found.append(message)
    return found


def _without_text(message: JsonObject) -> JsonObject:
    return message | {"content": ""}


def _with_one_call(message: JsonObject) -> JsonObject:
    calls = message["tool_calls"]
    assert isinstance(calls, list)
    return message | {"tool_calls": calls[:1]}
