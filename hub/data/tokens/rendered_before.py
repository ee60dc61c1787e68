"""Texts that hold special tokens of the tokenizer: rendered before, perhaps, so that the template renders them again."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from hub.data.formats.examples import Conversation, Document, Example, Tokens
from hub.data.json_values import listed
from hub.data.tokens.special_tokens import special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUM_PLACES = 3
_ANSWER = "0f3a9c"
MIN_LENGTH = 3
"""Characters of a special token that counts. Some tokenizers pad with a single character that any text may have."""

_MARKERS = re.compile(
    r"\s*(?:<s>|<bos>|<\|begin_of_text\|>|Below is an instruction[^#]*)?\s*"
    r"(<\|im_start\|>|<\|start_header_id\|>|<\|start\|>|<\|turn>|<start_of_turn>|\[INST\]|<\|(?:user|assistant|system)\|>"
    r"|<｜User｜>|###? (?:Instruction|Human|User):)"
)
"""What the turns of well-known chat templates begin with. Public, in the models' tokenizer_config.json."""

_ENDS = re.compile(r"(</s>|<\|(?:im_end|eot_id|endoftext|end|end_of_text)\|>|<end_of_turn>|<eos>|<｜end▁of▁sentence｜>)\s*$")
"""What ends the turns of these templates."""


class Kind(NamedTuple):
    """Where special tokens are in a row, and what to say about it."""

    spoils: bool
    what: str
    advice: str


KINDS = {
    "prompt": Kind(
        True,
        "rows whose prompt begins with the marker of a turn ({tokens}): rendered before, and the template renders them again",
        "Give the texts without a template's markers",
    ),
    "answer": Kind(
        True,
        "rows whose answer ends with a special token ({tokens}), and the chat template writes the end of a turn behind it",
        "Take it out of the answers",
    ),
    "document": Kind(
        False,
        "documents with special tokens or markers of turns ({tokens}): chats that are rendered already? Loss is on the "
        "questions, too",
        "To train on the answers only, give the messages",
    ),
    "tokens": Kind(
        False,
        "rows whose input_ids begin with two tokens {tokens}: was the text rendered before, and tokenized with another one?",
        "Tokenize a rendered text with add_special_tokens=False",
    ),
    "inside": Kind(
        False,
        "rows with the text of special tokens within messages ({tokens}), which become these tokens",
        "Ignore this if it is intended",
    ),
}


@dataclass
class RenderedBefore:
    """Collects rows with special tokens in their texts."""

    tokenizer: "PreTrainedTokenizerBase"
    places: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """A key of `KINDS` -> the rows."""

    tokens: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    _ends: bool | None = None
    """Whether the chat template ends turns. None: not known yet."""

    def __post_init__(self) -> None:
        names = [name for name in special_tokens(self.tokenizer) if len(name) >= MIN_LENGTH]
        self._pattern = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or r"(?!)")

    def add(self, where: str, examples: Iterable[Example]) -> None:
        """Look into the texts of one row.

        Args:
            where: file and line.
            examples: what becomes its samples.
        """
        found: dict[str, set[str]] = defaultdict(set)
        for example in examples:
            for kind, token in self._found(example):
                found[kind].add(token)
        if "prompt" in found:
            found.pop("inside", None)
        if "answer" in found and not self._template_ends_turns():
            del found["answer"]  # the end must be in the text
        for kind, tokens in found.items():
            self.places[kind].append(where)
            self.tokens[kind] |= tokens

    def reports(self) -> Iterator[tuple[Kind, list[str]]]:
        """What was found, in words, each with the rows."""
        for kind in KINDS:
            if where := self.places.get(kind):
                form = KINDS[kind]
                yield form._replace(what=form.what.format(tokens=listed(sorted(self.tokens[kind])))), where

    def lines(self) -> list[str]:
        """What was found, in lines for a log."""
        lines = []
        for kind, where in self.reports():
            some = ", ".join(where[:NUM_PLACES]) + (", ..." if len(where) > NUM_PLACES else "")
            lines.append(f"{'Warning' if kind.spoils else 'Note'}: {len(where):,} {kind.what} ({some}). {kind.advice}.")
        return lines

    def _template_ends_turns(self) -> bool:
        """Whether the chat template writes a special token behind an answer."""
        if self._ends is None:
            messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": _ANSWER}]
            try:
                text = str(self.tokenizer.apply_chat_template(messages, tokenize=False))
            except Exception:  # a template may refuse this conversation, in any way
                text = ""
            self._ends = _ANSWER not in text or bool(self._pattern.search(text.partition(_ANSWER)[2]))
        return self._ends

    def _found(self, example: Example) -> Iterator[tuple[str, str]]:
        if isinstance(example, Document):
            text = example.text.strip()
            # The hub's own end and the tokenizer's own begin are not written twice.
            text = text.removeprefix(self.tokenizer.bos_token or "").removesuffix(self.tokenizer.eos_token or "")
            tokens = dict.fromkeys(self._pattern.findall(text))
            if marker := _MARKERS.match(example.text):
                tokens[marker[1]] = None
            yield from (("document", token) for token in tokens)
        bos = self.tokenizer.bos_token_id
        if isinstance(example, Tokens) and bos is not None and example.input_ids[:2] == [bos, bos]:
            yield "tokens", str(self.tokenizer.bos_token)
        for message in example.messages if isinstance(example, Conversation) else ():
            yield from self._found_in(str(message["content"]), message["role"] == "assistant")

    def _found_in(self, text: str, is_answer: bool) -> Iterator[tuple[str, str]]:
        matches, is_ended = list(self._pattern.finditer(text)), False
        begin, end = len(text) - len(text.lstrip()), len(text.rstrip())
        if not is_answer and (marker := _MARKERS.match(text)):
            yield "prompt", marker[1]
        for match in matches:
            if is_answer and match.end() == end:
                is_ended = True
                yield "answer", match[0]
            else:
                yield "prompt" if not is_answer and match.start() == begin else "inside", match[0]
        ending = _ENDS.search(text) if is_answer and not is_ended else None  # of another model, and trained as text
        if ending and (ending[1] != "</s>" or "<s>" not in text):  # HTML has <s> for what is struck out
            yield "answer", ending[1]
