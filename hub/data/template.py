"""A conversation -> token ids, and which of them are trained: the assistant's turns with their end-of-turn token.

Where a turn stands in the rendered text is found by rendering again, never by searching for markers: a user may write
any text, that of a marker or the assistant's own words included.

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
from pathlib import Path
from typing import Any, Protocol

from hub.data.formats import Conversation
from hub.errors import DataError

_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")
_KEPT_FIELDS = ("role", "name", "tool_call_id", "type", "id")


@dataclass(frozen=True, slots=True)
class Encoded:
    """One conversation as tokens. Both lists have one entry per token."""

    input_ids: list[int]
    loss_mask: list[bool]
    """True where the token is trained, that is, where it is a target of the loss."""


class Tokens(Protocol):
    """Anything with token ids and their mask, such as `Encoded`."""

    @property
    def input_ids(self) -> Any:
        """Token ids, shape (length,)."""

    @property
    def loss_mask(self) -> Any:
        """Whether each token is trained, shape (length,)."""


def encode(tokenizer: Any, conversation: Conversation) -> Encoded:
    """Render a conversation with the tokenizer's chat template and tell the trained tokens from the others.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.
        conversation: what to render.

    Raises:
        DataError: the template refuses the conversation, or a turn of the assistant can't be found in what it renders.
    """
    turns = _Turns(tokenizer, conversation)
    spans = turns.tagged_spans()
    if spans is None:
        spans = [
            turns.span(index) for index, message in enumerate(conversation.messages) if message["role"] == "assistant"
        ]
    input_ids, mask = _tokenise(tokenizer, turns.full, spans, conversation.where)
    _drop_trailing_space(tokenizer, input_ids, mask)
    return Encoded(input_ids, mask)


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
            raise DataError(
                f"{conversation.where}: the text holds half a character (a lone surrogate, as \\ud83d)"
            ) from None

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

    def span(self, index: int) -> tuple[int, int]:
        """The characters of `full` that message `index`, one of the assistant's, has to bring forth."""
        is_last = index == len(self.messages) - 1
        alone = self.full if is_last else self._render_or_none(self.messages[: index + 1])
        prompt = self._render_or_none(self.messages[:index], prompt=True)
        if alone and prompt and self.full.startswith(alone) and alone.startswith(prompt) and len(alone) > len(prompt):
            return len(prompt), self._first_end(index, len(prompt), alone)
        return self._span_by_nonce(index)

    def _first_end(self, index: int, start: int, alone: str) -> int:
        """The end of a last turn, without a second special token that some templates put behind the first."""
        special, body = _special_tokens(self.tokenizer), alone[start:].rstrip()
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
            f"{self.conversation.where}: message {index + 1} (assistant) can't be found in what the chat template "
            "renders, so its loss can't be placed. Take the row out, or type data.template=FILE.jinja with a template "
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
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{conversation.where}: the chat template refuses this conversation. It says: {said}") from None


def _tokenise(tokenizer: Any, text: str, spans: list[tuple[int, int]], where: str) -> tuple[list[int], list[bool]]:
    """Token ids of the text, and which tokens have a character in one of the spans (in order, without overlap)."""
    for (_, end), (start, _) in pairwise(spans):
        if start < end:
            raise DataError(f"{where}: the chat template mixes two assistant turns, so their loss can't be placed")
    if tokenizer.is_fast:
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        extents = _extents(encoding["offset_mapping"], len(text.rstrip()))
        if extents is not None:
            mask, current = [False] * len(extents), 0
            for position, (start, end) in enumerate(extents):
                while current < len(spans) and spans[current][1] <= start:
                    current += 1
                mask[position] = current < len(spans) and end > spans[current][0]
            return list(encoding["input_ids"]), mask
    input_ids: list[int] = []
    mask = []
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    for number, (start, end) in enumerate(pairwise(edges)):
        piece = tokenizer(text[start:end], add_special_tokens=False)["input_ids"] if end > start else []
        input_ids += piece
        mask += [number % 2 == 1] * len(piece)
    return input_ids, mask


def _extents(offsets: list[tuple[int, int]], num_characters: int) -> list[tuple[int, int]] | None:
    """Offsets without gaps; None when they do not follow the text.

    Byte-level tokenizers leave a token's leading space out of its offsets, so a gap belongs to the token behind it. The
    tokens of one character that takes several all have the offsets of that character.
    """
    extents: list[tuple[int, int]] = []
    reached = 0
    for start, end in offsets:
        if start > end or end < reached:
            return None
        extents.append((min(start, reached), end))
        reached = end
    return extents if reached >= num_characters else None


def _drop_trailing_space(tokenizer: Any, input_ids: list[int], mask: list[bool]) -> None:
    """Take the loss off the whitespace behind a turn's last special token: it is never generated."""
    special = set(_special_tokens(tokenizer).values())
    for position in range(len(mask) - 1, -1, -1):
        if mask[position] and (position + 1 == len(mask) or not mask[position + 1]):
            last = position
            while last > 0 and mask[last - 1] and input_ids[last] not in special:
                if tokenizer.decode([input_ids[last]]).strip():
                    break
                last -= 1
            if input_ids[last] in special:
                mask[last + 1 : position + 1] = [False] * (position - last)


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


def _special_tokens(tokenizer: Any) -> dict[str, int]:
    return _tables(tokenizer)[1]


def load_template(tokenizer: Any, file: str) -> None:
    """Give the tokenizer the chat template that a file holds. It is then saved with the trained model, too.

    Raises:
        DataError: the file can't be read, or is no Jinja template.
    """
    from jinja2 import TemplateError, TemplateSyntaxError

    try:
        template = Path(file).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.template={file}: can't be read ({error})") from None
    if not template.strip():
        raise DataError(f"data.template={file}: the file is empty. It must hold a Jinja chat template")
    tokenizer.chat_template = template
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    except TemplateSyntaxError as error:
        raise DataError(f"data.template={file}: line {error.lineno} is no valid Jinja ({error.message})") from None
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError):
        return  # it may well refuse this conversation; each row is tried and named


def require_template(tokenizer: Any, model_path: str) -> None:
    """Check that there is a chat template.

    Raises:
        DataError: there is none.
    """
    if not tokenizer.chat_template:
        raise DataError(
            f"model.path={model_path}: its tokenizer has no chat template, so conversations can't be rendered. "
            "Take the instruct (chat) version of the model, or type data.template=FILE.jinja"
        )


def template_report(tokenizer: Any, samples: Iterable[Tokens]) -> str:
    """Prove on encoded samples that the model learns to end its turns.

    Returns:
        One sentence: what is trained, with the end-of-turn tokens; or a warning that the last turn of some samples has
        none among its trained tokens.
    """
    special = {number: text for text, number in _special_tokens(tokenizer).items()}
    ends: dict[str, int] = {}
    num_samples = num_ended = 0
    for sample in samples:
        num_samples += 1
        mask = list(sample.loss_mask)
        if not any(mask):
            continue
        last = special.get(int(sample.input_ids[len(mask) - 1 - mask[::-1].index(True)]))
        if last is not None:
            num_ended += 1
            ends[last] = ends.get(last, 0) + 1
    if num_ended < num_samples:
        return (
            f"Warning: in {num_samples - num_ended} of {num_samples} samples the assistant's last turn ends without a "
            "special token that is trained, so the model may not learn to stop. Type data.template=FILE.jinja with a "
            "template that ends its turns with one"
        )
    names = " or ".join(sorted(ends, key=lambda name: -ends[name]))
    return f"Loss is on the assistant's turns only, their end-of-turn token {names} included."
