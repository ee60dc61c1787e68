"""Renders what comes before an answer, with messages in the form that the chat template takes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from hub.data.formats.examples import Conversation
from hub.data.tokens.chat_template import chat_template
from hub.data.tokens.forms import forms
from hub.data.tokens.turns import form_of
from hub.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render_prompt(
    tokenizer: "PreTrainedTokenizerBase", conversation: Conversation, variables: Mapping[str, object] | None = None
) -> str:
    """Render a conversation and the generation prompt behind it.

    Args:
        tokenizer: must have a chat template.
        conversation: what to render. Its last message need not be an answer.
        variables: what the template sees besides, such as `enable_thinking`.

    Raises:
        DataError: the template refuses the conversation.
    """
    template, where = chat_template(tokenizer, conversation.tools), conversation.where
    failure: DataError | None = None
    spare: str | None = None
    for form in forms(conversation, template.reads_parts, template.reads_null, form_of(tokenizer, template)):
        messages = form.of(conversation.messages)
        try:
            text = template.render(tokenizer, messages, conversation.tools, where, prompt=True, variables=variables)
        except DataError as error:
            failure = failure or error
            continue
        if not form.shows_python(text, conversation, template.text):
            return text
        spare = spare or text
    if spare is None:
        assert failure is not None
        raise failure
    return spare
