"""Renders a conversation's messages, with the arguments of tool calls in the form that the chat template takes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from hub.data.formats.examples import Conversation
from hub.data.json_values import JsonObject
from hub.data.tokens.chat_template import ChatTemplate
from hub.data.tokens.marks import with_json_arguments
from hub.data.tokens.omissions import refusal
from hub.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render_messages(
    tokenizer: "PreTrainedTokenizerBase",
    template: ChatTemplate,
    conversation: Conversation,
    prompt: bool = False,
    variables: Mapping[str, object] | None = None,
) -> tuple[str, bool]:
    """Render a conversation, its arguments of calls as objects, or as JSON texts where the template takes only these.

    Args:
        tokenizer: the one of the template.
        template: from `chat_template`.
        conversation: what to render. Its messages need not end with an answer.
        prompt: whether the generation prompt follows.
        variables: what the template sees besides, such as `enable_thinking`.

    Returns:
        What is rendered, and whether arguments are JSON texts.
    """
    messages, tools, where = conversation.messages, conversation.tools, conversation.where

    def rendered(given: list[JsonObject]) -> str:
        return template.render(tokenizer, given, tools, where, prompt, variables)

    has_calls = any("tool_calls" in message for message in messages)
    if not has_calls:
        try:
            return rendered(messages), False
        except DataError as error:
            raise refusal(error, conversation, tokenizer, template) from None
    texts = with_json_arguments(messages)
    if template.json_arguments:
        try:
            return rendered(texts), True
        except DataError:
            template.json_arguments = False
    refused: DataError | None = None
    try:
        full = rendered(messages)
        if not _shows_python(full, messages):
            return full, False
    except DataError as error:
        refused = error
    try:
        with_texts = rendered(texts)
    except DataError:
        if refused is not None:
            raise refusal(refused, conversation, tokenizer, template) from None
        return full, False
    template.json_arguments = True
    return with_texts, True


def _shows_python(rendered: str, messages: list[JsonObject]) -> bool:
    """Whether arguments were rendered as Python writes an object, `{'x': None}`, and not as JSON."""
    calls = [call for message in messages for call in message.get("tool_calls", ())]  # type: ignore[attr-defined]
    arguments = [call["function"]["arguments"] for call in calls]
    return any(value and str(value) in rendered for value in arguments)
