"""Where the assistant's turns are in a rendered conversation.

They are found by rendering again, never by searching for markers: a user may write any text, that of a marker or the
assistant's own words included.

* A template with `{% generation %}` tags marks them itself.
* Otherwise a turn is what is added to the generation prompt before it. So the loss is on all that the model must write at
  that point, a header such as `<|channel|>final<|message|>` or an empty block of thoughts included.
* Some templates render a turn differently once others follow it: thoughts are left out, `<|return|>` becomes `<|end|>`.
  Such a turn is found by rendering the conversation with the texts of that turn replaced by random ones. It is trained
  as far as it agrees with its rendering as the last turn. Thus no model is taught to write, where it should stop, a
  token that does not stop it.
"""

import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, cast

from hub.data.formats.examples import Conversation
from hub.data.formats.messages import called_functions
from hub.data.json_values import JsonObject, JsonValue
from hub.data.tokens.special_tokens import added_tokens, special_tokens
from hub.data.tokens.template_date import dated_template
from hub.data.tokens.template_limits import RAISED, limits
from hub.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")
RenderWithSpans = Callable[..., tuple[list[str], list[list[tuple[int, int]]]]]
"""What `render_jinja_template` of transformers is: it declares a text, but returns texts and the spans of their turns."""

_MESSAGE_IDS = ("role", "name", "tool_call_id", "type", "id")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as its chat template renders it."""

    text: str

    spans: list[tuple[int, int]]
    """The first character of each of the assistant's turns, and the one behind its last."""

    num_omitted: int
    """Texts beside tool calls that the template leaves out, as many templates do."""

    behind_system: int | None = None
    """Where the first message that is not the system's begins. None: the conversation has no `unmask`."""


def find_turns(tokenizer: "PreTrainedTokenizerBase", conversation: Conversation) -> Rendered:
    """Render a conversation and find the assistant's turns in it.

    Args:
        tokenizer: must have a chat template.
        conversation: what to render.

    Raises:
        DataError: the template refuses the conversation, a turn can't be found in what it renders, or it takes too long.
    """
    with limits(conversation.where):
        return _find_turns(tokenizer, conversation)


def _find_turns(tokenizer: "PreTrainedTokenizerBase", conversation: Conversation) -> Rendered:
    turns = _Turns(tokenizer, conversation)
    spans, num_omitted = turns.tagged_spans(), 0
    if spans is None:
        indices = [index for index, message in enumerate(conversation.messages) if message["role"] == "assistant"]
        spans = [turns.span(index) for index in indices]
        num_omitted = sum(turns.omits(*turn) for turn in zip(indices, spans, strict=True))
    for (_, end), (start, _) in pairwise(spans):
        if start < end:
            raise DataError(f"{conversation.where}: the chat template mixes two assistant turns, so their loss can't be placed")
    return Rendered(turns.full, spans, num_omitted, turns.behind_system() if conversation.unmask else None)


class _Turns:
    """Finds the turns of one conversation in its rendering."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", conversation: Conversation) -> None:
        self.tokenizer = tokenizer
        self.conversation = conversation
        self.messages = conversation.messages
        self.full = self._render(self.messages)
        try:
            self.full.encode()
        except UnicodeEncodeError:
            raise DataError(f"{conversation.where}: the text holds half a character (a lone surrogate, as \\ud83d)") from None

    def _render(self, messages: list[JsonObject], prompt: bool = False) -> str:
        return _apply(self.tokenizer, self.conversation, messages, prompt)

    def _render_or_none(self, messages: list[JsonObject], prompt: bool = False) -> str | None:
        """Render a part of the conversation. A template may refuse it although it takes the whole."""
        try:
            return self._render(messages, prompt) if messages else None
        except DataError:
            return None

    def tagged_spans(self) -> list[tuple[int, int]] | None:
        """The characters within `{% generation %}` tags. None when the template has no such tags.

        Transformers' own mask of tokens is not used: where a byte-level tokenizer leaves spaces out of its offsets, or
        a character takes several tokens, it loses turns or runs on into the next message.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        template = dated_template(self.tokenizer, self.conversation.tools)
        if not _GENERATION_TAG.search(template):
            return None
        rendered, spans = cast(RenderWithSpans, render_jinja_template)(
            conversations=[self.messages],
            tools=self.conversation.tools,
            chat_template=template,
            return_assistant_tokens_mask=True,
            **self.tokenizer.special_tokens_map,
        )
        if rendered[0] != self.full:
            raise DataError(f"{self.conversation.where}: the chat template renders this row differently each time")
        return spans[0]

    def omits(self, index: int, span: tuple[int, int]) -> bool:
        """Whether the span of message `index` lacks the text of the message beside its tool calls.

        Raises:
            DataError: it lacks the tool calls, or the text of a message without any.
        """
        message, text = self.messages[index], self.full[slice(*span)]
        calls = called_functions(message)
        # Contents may be stripped, and thoughts before their end be left out: the last word stays.
        words = re.findall(r"\w+", str(message["content"]).rpartition("</think>")[2])
        has_text = not words or words[-1] in text
        if (not has_text and not calls) or any(name not in text for name in calls):
            what = "the tool calls" if calls else "the content"
            raise DataError(
                f"{self.conversation.where}: the chat template leaves out {what} of message {index + 1} (assistant). "
                "Take the row out, or type data.template=FILE.jinja with a template that shows it"
            )
        return not has_text

    def span(self, index: int) -> tuple[int, int]:
        """The characters of `full` that the model must generate for message `index`, one of the assistant's."""
        is_last = index == len(self.messages) - 1
        alone = self.full if is_last else self._render_or_none(self.messages[: index + 1])
        prompt = self._render_or_none(self.messages[:index], prompt=True)
        if alone and prompt and self.full.startswith(alone) and alone.startswith(prompt) and len(alone) > len(prompt):
            return len(prompt), self._first_end(index, len(prompt), alone)
        return self._span_by_nonce(index)

    def behind_system(self) -> int:
        """The first character of the first message that is not the system's."""
        first = next(index for index, message in enumerate(self.messages) if message["role"] != "system")
        around = self._around(self.messages, first)
        if around is None or not self.full.startswith(around[0]):
            raise self._not_found(first)
        return len(around[0])

    def _first_end(self, index: int, start: int, alone: str) -> int:
        """The end of a last turn, without a second special token that some templates put behind the first."""
        special, body = special_tokens(self.tokenizer), alone[start:].rstrip()
        last = _token_at_end(body, special)
        if not last or not _token_at_end(body[: -len(last)].rstrip(), special):
            return len(alone)
        around = self._around(self.messages[: index + 1], index)
        if around is None or not alone.endswith(around[1]):
            return len(alone)
        tail = around[1]
        stops = [(place, -len(token)) for token in special if (place := tail.find(token)) >= 0]
        if not stops:
            return len(alone)
        place, length = min(stops)
        return len(alone) - len(tail) + place - length

    def _span_by_nonce(self, index: int) -> tuple[int, int]:
        around = self._around(self.messages, index)
        if around is None or not self.full.endswith(around[1]):
            raise self._not_found(index)
        head, tail = around
        end = len(self.full) - len(tail)
        start = len(head) if self.full.startswith(head) and len(head) <= end else None
        # What the prompt has behind an earlier message is there in `full`, too. The turn begins behind it.
        for earlier in range(index - 1, -1, -1):
            around, asked = (
                self._around(self.messages, earlier),
                self._around(self.messages[:index], earlier, prompt=True),
            )
            if around and asked and self.full.endswith(around[1]):
                before = len(self.full) - len(around[1])
                limit = end if start is None else start
                if before <= limit:
                    start = before + self._agreement(self.full[before:limit], asked[1])
                    break
        if start is None:
            raise self._not_found(index)
        if alone := self._around(self.messages[: index + 1], index):
            end += self._agreement(tail, alone[1])
        return start, end

    def _not_found(self, index: int) -> DataError:
        return DataError(
            f"{self.conversation.where}: message {index + 1} ({self.messages[index]['role']}) can't be found in what the chat "
            "template renders, so its loss can't be placed. Take the row out, or type data.template=FILE.jinja with a template "
            "that has {% generation %} tags"
        )

    def _around(self, messages: list[JsonObject], index: int, prompt: bool = False) -> tuple[str, str] | None:
        """What is rendered before and behind the texts of one message: all that stays when these are replaced."""
        # Two replacements that share neither their first nor their last character, so that what both renderings have in
        # common, from the start and from the end, is exactly what does not belong to the message.
        others = []
        for edge in "qw":
            nonce = edge + secrets.token_hex(8) + edge
            replaced = _replace_texts(messages[index], nonce)
            other = self._render_or_none([*messages[:index], replaced, *messages[index + 1 :]], prompt)
            if other is None or other.count(nonce) > repr(replaced).count(nonce):
                return None  # rendered in two places, with texts of other messages between them
            others.append(other)
        first, second = others
        if first == second:
            return None
        return first[: _common_prefix(first, second)], first[len(first) - _common_prefix(first[::-1], second[::-1]) :]

    def _agreement(self, here: str, there: str) -> int:
        """Number of equal characters at the start. An added token counts as a whole or not at all."""
        agreed = _common_prefix(here, there)
        added = added_tokens(self.tokenizer)
        for begin in range(max(0, agreed - max(map(len, added), default=0)), agreed):
            for text in (here, there):
                if any(text[begin:stop] in added for stop in range(agreed + 1, min(len(text), begin + 64) + 1)):
                    return begin
        return agreed


def _replace_texts(message: JsonObject, nonce: str) -> JsonObject:
    """The same message with all texts and numbers replaced, except in the fields that identify it."""
    return {key: item if key in _MESSAGE_IDS else _replace(item, nonce) for key, item in message.items()}


def _replace(value: JsonValue, nonce: str) -> JsonValue:
    """The same value with all texts and numbers replaced, except types and ids."""
    if isinstance(value, str):
        return nonce if value else value
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | float):
        return 11 if nonce[0] == "q" else 22
    if isinstance(value, list):
        return [_replace(item, nonce) for item in value]
    if isinstance(value, dict):
        return {key: item if key in ("type", "id") else _replace(item, nonce) for key, item in value.items()}
    return value


def _apply(tokenizer: "PreTrainedTokenizerBase", conversation: Conversation, messages: list[JsonObject], prompt: bool) -> str:
    """Render in the sandbox of transformers.

    Raises:
        DataError: with the row, and the template's own message.
    """
    from jinja2 import TemplateError, TemplateSyntaxError

    try:
        # transformers declares the fields of messages as texts, but passes them to the template as they are.
        render = cast(Callable[..., str], tokenizer.apply_chat_template)
        template = dated_template(tokenizer, conversation.tools)
        return str(
            render(messages, tools=conversation.tools, chat_template=template, tokenize=False, add_generation_prompt=prompt)
        )
    except TemplateSyntaxError as error:
        raise DataError(f"the chat template can't be read (its line {error.lineno}: {error.message})") from None
    except (TemplateError, *RAISED) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{conversation.where}: the chat template refuses this conversation. It says: {reason}") from None


def _common_prefix(first: str, second: str) -> int:
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _token_at_end(text: str, tokens: Iterable[str]) -> str | None:
    return next((token for token in tokens if text.endswith(token)), None)
