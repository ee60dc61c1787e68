"""Prompts as token ids, rendered as in training."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hub.data.formats.examples import Conversation
from hub.data.json_values import JsonObject
from hub.data.tokens.chat_template import chat_template
from hub.data.tokens.rendering import render_prompt
from hub.data.tokens.special_tokens import without_second_bos
from hub.data.tokens.template import render
from hub.data.tokens.template_limits import check_sandbox, limits
from hub.data.tokens.tokenize import tokenize
from hub.errors import ConfigError, DataError
from hub.tasks.generate.answer_shape import ANSWER, answer_shape

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SWITCH = re.compile(r"\benable_thinking\b")
_OTHER_SWITCH = re.compile(r"\b(?:if|elif|and|or|not)\s+\(*thinking\b(?!\s*\.)")


@dataclass(frozen=True)
class Prompt:
    """What a model is asked."""

    ids: list[int]
    text: str
    """What the ids are of, with special tokens."""


class Prompter:
    """Renders prompts with the chat template of a tokenizer.

    A model that was trained with the template gets the tokens that a training sample of the same conversation has before the
    first token with loss of its last answer. Most often these are what the template writes with its generation prompt. Some
    templates differ: they open a block of thoughts, keep thoughts until an answer follows, or show the system message in a last
    question only. Any other model gets what its template writes, and so does a switch for thoughts that the user sets.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", thinking: str = "auto", trained: bool = False) -> None:
        """Args:
        tokenizer: with or without a chat template.
        thinking: as `generate.thinking`.
        trained: whether the model was fine-tuned with this template.

        Raises:
            ConfigError: the template has no switch for thoughts, and one is asked for.
        """
        self.tokenizer = tokenizer
        self.lines: list[str] = []
        """Remarks for the user."""

        self.omitted: dict[str, list[str]] = {}
        """What the template left out, as in training -> the conversations, for `hub.data.tokens.omissions.omission_lines`."""

        self.variables = _variables(tokenizer, thinking)
        self._trained = trained and thinking == "auto" and bool(tokenizer.chat_template)
        if self._trained and (opened := answer_shape(tokenizer).only_prompt):
            self.lines.append(
                f"the chat template ends prompts with {opened!r}, which no training sample has. The model is asked as it was "
                "trained, without it. generate.thinking=on keeps it"
            )

    def of_messages(self, messages: list[JsonObject], tools: list[JsonObject] | None, where: str) -> Prompt:
        """The prompt for the next answer in a conversation.

        Args:
            messages: checked ones. The last one is not the assistant's.
            tools: JSON schemas of functions.
            where: the row, for messages.

        Raises:
            DataError: the model has no chat template, and this is more than a single question; or the template refuses it.
        """
        if not self.tokenizer.chat_template:
            if len(messages) == 1 and messages[0]["role"] == "user" and not tools:
                return self.of_text(str(messages[0]["content"]), where)
            raise DataError(
                f"{where}: the model has no chat template (a base model?), and this is a conversation. "
                "Type data.template=plain or chatml, or give a single text"
            )
        check_sandbox()
        text = self._of_training(messages, tools, where) if self._trained else None
        if text is None:
            if tools or len(messages) > 1:
                self._of_training(messages, tools, where)  # for what the template leaves out
            with limits(where):
                text = render_prompt(self.tokenizer, Conversation(messages, tools, where), self.variables)
        _check_characters(text, where)
        ((ids, _),) = tokenize(self.tokenizer, [text], [[]])
        return Prompt(ids.tolist(), text)

    def of_ids(self, ids: Sequence[int], where: str) -> list[int]:
        """A prompt of token ids.

        Raises:
            DataError: the tokenizer does not have them.
        """
        if max(ids) >= len(self.tokenizer):
            raise DataError(
                f"{where}: input_ids has {max(ids)}, but the model's tokenizer has {len(self.tokenizer)} tokens. Were they "
                "made with another tokenizer?"
            )
        return list(ids)

    def _of_training(self, messages: list[JsonObject], tools: list[JsonObject] | None, where: str) -> str | None:
        """What a training sample has before its answer. None: the template refuses the conversation with an answer."""
        try:
            with limits(where):
                rendered = render(self.tokenizer, Conversation([*messages, ANSWER], tools, where), "last")
        except DataError:
            return None
        for kind in rendered.omitted:
            self.omitted.setdefault(kind, []).append(where)
        return rendered.text[: rendered.spans[-1][0]] if rendered.spans else None

    def of_text(self, text: str, where: str) -> Prompt:
        """A text that the model continues, with what the tokenizer puts before a text and nothing behind it.

        Args:
            text: the text.
            where: the row, for messages.

        Raises:
            DataError: it has half a character.
        """
        _check_characters(text, where)
        ids = without_second_bos(self.tokenizer, list(self.tokenizer(text)["input_ids"]))
        end = self.tokenizer.eos_token_id
        while len(ids) > 1 and end is not None and ids[-1] == end and not text.endswith(str(self.tokenizer.eos_token)):
            ids.pop()
        return Prompt(ids, text)


def _check_characters(text: str, where: str) -> None:
    """Refuse a lone surrogate, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: the text holds half a character (a lone surrogate, as \\ud83d)") from None


def _variables(tokenizer: "PreTrainedTokenizerBase", thinking: str) -> Mapping[str, object]:
    """What the template sees for `generate.thinking`."""
    if thinking == "auto":
        return {}
    text = chat_template(tokenizer, None).text if tokenizer.chat_template else ""
    names = ["enable_thinking"] if _SWITCH.search(text) else ["thinking"] if _OTHER_SWITCH.search(text) else []
    if not names and not (thinking == "on" and text and answer_shape(tokenizer).only_prompt):
        raise ConfigError(
            f"generate.thinking={thinking}: the chat template has no switch for thoughts (enable_thinking). Leave it out"
        )
    return dict.fromkeys(names, thinking == "on")
