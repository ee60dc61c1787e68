"""Where the assistant's turns stand in a rendered conversation.

They are found by rendering again, never by searching for markers: a user may write any text, that of a marker or the
assistant's own words included.

* A template with `{% generation %}` tags says it by itself.
* Else a turn is what is added to the generation prompt before it. So the loss is on all that the model has to write by
  itself at that point, a header such as `<|channel|>final<|message|>` or an empty block of thoughts included.
* Some templates render a turn differently once others follow it: thoughts are left out, `<|return|>` becomes `<|end|>`.
  Such a turn is found by rendering the conversation with the texts of that turn replaced by random ones. It is trained
  as far as it agrees with its rendering as the last turn. Thus no model is taught to write, where it should stop, a
  token that does not stop it.
"""

import re
import secrets
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from hub.data.formats.examples import Conversation
from hub.data.tokens.template_limits import RAISED, limits
from hub.errors import DataError

_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")
_KEPT_FIELDS = ("role", "name", "tool_call_id", "type", "id")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as its chat template writes it."""

    text: str

    spans: list[tuple[int, int]]
    """For each turn of the assistant its first character and the one behind its last."""

    num_omitted: int
    """Texts beside tool calls that the template leaves out, as many do."""

    behind_system: int | None = None
    """Where the first message that is not the system's begins, in a conversation that is trained from there on."""


def find_turns(tokenizer: Any, conversation: Conversation) -> Rendered:
    """Render a conversation and find what the assistant says in it.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.
        conversation: what to render.

    Raises:
        DataError: the template refuses the conversation, a turn can't be found in what it renders, or it takes too long.
    """
    with limits(conversation.where):
        return _find_turns(tokenizer, conversation)


def _find_turns(tokenizer: Any, conversation: Conversation) -> Rendered:
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

    def __init__(self, tokenizer: Any, conversation: Conversation) -> None:
        self.tokenizer = tokenizer
        self.conversation = conversation
        self.messages = conversation.messages
        self.full = self._render(self.messages)
        try:
            self.full.encode()
        except UnicodeEncodeError:
            raise DataError(f"{conversation.where}: the text holds half a character (a lone surrogate, as \\ud83d)") from None

    def _render(self, messages: list[dict[str, Any]], prompt: bool = False) -> str:
        return str(_apply(self.tokenizer, self.conversation, messages, tokenize=False, add_generation_prompt=prompt))

    def _render_or_none(self, messages: list[dict[str, Any]], prompt: bool = False) -> str | None:
        """For a part of the conversation, which a template may refuse although it takes the whole."""
        try:
            return self._render(messages, prompt) if messages else None
        except DataError:
            return None

    def tagged_spans(self) -> list[tuple[int, int]] | None:
        """The characters within `{% generation %}` tags; None when the template has no such tags.

        Transformers' own mask of tokens is not used: where a byte-level tokenizer leaves spaces out of its offsets, or
        a character takes several tokens, it loses turns or runs on into the next message.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        template = self.tokenizer.get_chat_template(tools=self.conversation.tools)
        if not _GENERATION_TAG.search(template):
            return None
        rendered, spans = render_jinja_template(
            conversations=[self.messages],
            tools=self.conversation.tools,
            chat_template=template,
            return_assistant_tokens_mask=True,
            **self.tokenizer.special_tokens_map,
        )
        if rendered[0] != self.full:
            raise DataError(f"{self.conversation.where}: the chat template renders this row differently each time")
        return [(start, end) for start, end in spans[0]]

    def omits(self, index: int, span: tuple[int, int]) -> bool:
        """Whether the text in the span of message `index` lacks what the message says beside its tool calls.

        Raises:
            DataError: it lacks the tool calls, or what a message without such says.
        """
        message, text = self.messages[index], self.full[slice(*span)]
        calls = message.get("tool_calls", [])
        # Contents may be stripped, and thoughts before their end be left out: the last word stays.
        words = re.findall(r"\w+", message["content"].rpartition("</think>")[2])
        is_said = not words or words[-1] in text
        if (not is_said and not calls) or any(call["function"]["name"] not in text for call in calls):
            what = "the tool calls" if calls else "what is said"
            raise DataError(
                f"{self.conversation.where}: the chat template leaves out {what} in message {index + 1} (assistant). "
                "Take the row out, or type data.template=FILE.jinja with a template that shows it"
            )
        return not is_said

    def span(self, index: int) -> tuple[int, int]:
        """The characters of `full` that message `index`, one of the assistant's, has to bring forth."""
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
        # What the prompt has behind an earlier message stands there in `full` too, and the turn begins behind that.
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

    def _around(self, messages: list[dict[str, Any]], index: int, prompt: bool = False) -> tuple[str, str] | None:
        """What is rendered before and behind the texts of one message: all that stays when they are replaced."""
        # Two replacements that share neither their first nor their last character, so that what both renderings have in
        # common, from the start and from the end, is exactly what does not belong to the message.
        others = []
        for edge in "qw":
            nonce = edge + secrets.token_hex(8) + edge
            replaced = _replace(messages[index], nonce, _KEPT_FIELDS)
            other = self._render_or_none([*messages[:index], replaced, *messages[index + 1 :]], prompt)
            if other is None or other.count(nonce) > repr(replaced).count(nonce):
                return None  # rendered in two places: texts of others would lie between them
            others.append(other)
        first, second = others
        if first == second:
            return None
        return first[: _common_prefix(first, second)], first[len(first) - _common_prefix(first[::-1], second[::-1]) :]

    def _agreement(self, here: str, there: str) -> int:
        """Number of characters at the start that are equal, half of an added token not counted."""
        agreed = _common_prefix(here, there)
        added = _added_tokens(self.tokenizer)
        for begin in range(max(0, agreed - max(map(len, added), default=0)), agreed):
            for text in (here, there):
                if any(text[begin:stop] in added for stop in range(agreed + 1, min(len(text), begin + 64) + 1)):
                    return begin
        return agreed


def _replace(value: Any, nonce: str, kept: tuple[str, ...] = ("type", "id")) -> Any:
    """The same value with every text and number replaced, except in the fields that are `kept`."""
    if isinstance(value, str):
        return nonce if value else value
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | float):
        return 11 if nonce[0] == "q" else 22
    if isinstance(value, list):
        return [_replace(item, nonce) for item in value]
    if isinstance(value, dict):
        return {key: item if key in kept else _replace(item, nonce) for key, item in value.items()}
    return value


def _apply(tokenizer: Any, conversation: Conversation, messages: list[dict[str, Any]], **options: Any) -> Any:
    """Render in transformers' sandbox.

    Raises:
        DataError: with the row, and what the template said.
    """
    from jinja2 import TemplateError, TemplateSyntaxError

    try:
        return tokenizer.apply_chat_template(messages, tools=conversation.tools, **options)
    except TemplateSyntaxError as error:
        raise DataError(f"the chat template can't be read (its line {error.lineno}: {error.message})") from None
    except (TemplateError, *RAISED) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{conversation.where}: the chat template refuses this conversation. It says: {said}") from None


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


_added: "weakref.WeakKeyDictionary[Any, tuple[int, dict[str, int], dict[str, int]]]" = weakref.WeakKeyDictionary()


def _tables(tokenizer: Any) -> tuple[dict[str, int], dict[str, int]]:
    """Text and id of all added tokens, and of those that are special. Kept, since asking the tokenizer is slow."""
    kept = _added.get(tokenizer)
    if kept is None or kept[0] != len(tokenizer):
        every = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
        special = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        special |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        special.pop(tokenizer.unk_token, None)  # it stands for any text
        kept = _added[tokenizer] = (len(tokenizer), every | special, special)
    return kept[1], kept[2]


def _added_tokens(tokenizer: Any) -> dict[str, int]:
    return _tables(tokenizer)[0]


def special_tokens(tokenizer: Any) -> dict[str, int]:
    """Text and id of the tokens that mean something by themselves, such as the end of a turn."""
    return _tables(tokenizer)[1]
