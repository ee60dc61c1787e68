"""From a row to the units that it gives, or to the reason why it gives none."""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from hub.config.data import DataConfig, DataSource
from hub.config.option import AUTO
from hub.data.formats.examples import (
    Conversation,
    Document,
    Example,
    ExampleGroup,
    RowExample,
    Tokens,
    naming_role,
)
from hub.data.formats.file_format import FileFormats
from hub.data.samples.cut import cut, cut_group, has_loss
from hub.data.samples.sample import Item, Sample
from hub.data.sources.entries import Entry, name_of
from hub.data.tokens.template import render, require_template
from hub.data.tokens.template_limits import TemplateLimitError, limits
from hub.data.tokens.tokenize import Spans, tokenize, tokenize_documents
from hub.data.tokens.turns import TooLongError
from hub.data.tokens.vocabulary import check_embedded
from hub.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MIN_CHARACTERS_SKIPPED = 1_000_000
"""Shorter texts are tokenized even if they are too long for sure, so that their length can be reported."""

BATCH_ROWS = 64
"""Rows that are rendered and tokenized together."""

BATCH_CHARACTERS = 2**20
"""Rendered characters that are tokenized together, but for a longer text."""


@dataclass(slots=True)
class _Part:
    """One sample of a row, before it is tokenized."""

    example: Example
    text: str = ""
    spans: Spans | None = None
    """What is trained of a conversation. None: the text is a document."""

    omitted: tuple[str, ...] = ()
    sample: Sample | None = None


@dataclass(slots=True)
class _Draft:
    """A row before it is tokenized."""

    where: str
    """File and line, for a bad row."""

    example: RowExample | None = None
    parts: dict[str, _Part] = field(default_factory=dict)
    """Role -> sample. A row with a single sample has the role ''."""

    too_long: int = 0
    """Characters of a text that is too long to be tokenized."""

    error: DataError | None = None

    @property
    def num_characters(self) -> int:
        return sum(len(part.text) for part in self.parts.values())


class Encoder:
    """Turns the rows of one source into items."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", data: DataConfig, source: DataSource, limit: int | None) -> None:
        """Args:
        tokenizer: gets a chat template when the first conversation comes and it has none.
        data: what is trained, and what happens to rows that are too long or bad.
        source: where the rows come from, and their format.
        limit: tokens of the longest sample. None: any.
        """
        self._tokenizer, self._data, self._source, self._limit = tokenizer, data, source, limit
        self._formats = FileFormats(source, data)
        self._has_template = False
        # A text of more characters than that per token is too long for sure. A token for unknown text stands for any number.
        self._longest_token = 0
        if limit is not None and data.on_long in (AUTO, "drop") and tokenizer.unk_token is None:
            self._longest_token = max(map(len, tokenizer.get_vocab()))

    def __call__(self, entry: Entry) -> list[Item]:
        """Encode one row. Gives one item, or several where the row is split.

        Raises:
            DataError: the row can't be used, and data.on_bad_row=error.
        """
        return next(self.many([entry]))

    def many(self, entries: Iterable[Entry]) -> Iterator[list[Item]]:
        """Encode rows, some at a time. Gives the items of each row, in order.

        Raises:
            DataError: a row can't be used, and data.on_bad_row=error. The rows before it are given first.
        """
        rest = iter(entries)
        while some := list(islice(rest, BATCH_ROWS)):
            batch: list[_Draft] = []
            num_characters = 0
            for draft in self._drafts(some):
                batch.append(draft)
                num_characters += draft.num_characters
                if num_characters > BATCH_CHARACTERS:
                    yield from self._finished(batch)
                    batch, num_characters = [], 0
            yield from self._finished(batch)

    def example(self, entry: Entry) -> RowExample:
        """What a row is before it becomes tokens.

        Raises:
            DataError: the row can't be used.
        """
        return self._formats.example(entry)

    def _drafts(self, entries: list[Entry]) -> list[_Draft]:
        """Convert and render rows."""
        try:
            with limits(self._source.path):
                return [self._draft(entry) for entry in entries]
        except TemplateLimitError:  # find the row
            return [self._draft(entry, limited=True) for entry in entries]

    def _draft(self, entry: Entry, limited: bool = False) -> _Draft:
        """Convert and render a row. An error of the row is stored, so that it comes in its turn.

        Args:
            entry: the row.
            limited: whether to bound the time and memory of each of its texts.
        """
        draft = _Draft(f"{name_of(entry.file)}:{entry.line}")
        try:
            draft.example = example = self.example(entry)
            if isinstance(example, ExampleGroup):
                for role, each in example.examples.items():
                    with naming_role(example.where, role):
                        draft.parts[role] = self._part(each, limited)
            else:
                draft.parts[""] = self._part(example, limited)
        except TooLongError as error:
            draft.parts, draft.too_long = {}, error.num_characters
        except TemplateLimitError as error:
            if not limited:
                raise
            draft.parts, draft.error = {}, error
        except DataError as error:
            draft.parts, draft.error = {}, error
        return draft

    def _part(self, example: Example, limited: bool) -> _Part:
        if isinstance(example, Document):
            return _Part(example, example.text)
        if isinstance(example, Conversation):
            with limits(example.where) if limited else nullcontext():
                given = render(self._prepared_tokenizer(), example, self._data.loss_on, self._max_characters())
            return _Part(example, given.text, given.spans, given.omitted)
        num_known = len(self._tokenizer)
        if max(example.input_ids) >= num_known:
            raise DataError(
                f"{example.where}: input_ids has {max(example.input_ids)}, but the model's tokenizer has {num_known} "
                "tokens. Were they made with another tokenizer?"
            )
        sample = Sample(np.asarray(example.input_ids, np.int32), np.asarray(example.loss_mask, np.bool_), example.where)
        return _Part(example, sample=sample)

    def _prepared_tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer with a chat template."""
        if not self._has_template:
            require_template(self._tokenizer)
            self._has_template = True
        return self._tokenizer

    def _max_characters(self) -> int | None:
        """Characters beyond which a text is not tokenized. None: any number is."""
        if not self._longest_token:
            return None
        return max(MIN_CHARACTERS_SKIPPED, self._longest_token * (self._limit or 0))

    def _finished(self, batch: list[_Draft]) -> Iterator[list[Item]]:
        """Tokenize rows. Gives the items of each."""
        parts = [part for draft in batch for part in draft.parts.values() if part.sample is None]
        chats = [(part, part.spans) for part in parts if part.spans is not None]
        documents = [part for part in parts if part.spans is None]
        tokens = tokenize(self._tokenizer, [part.text for part, _ in chats], [spans for _, spans in chats])
        for (part, _), (ids, mask) in zip(chats, tokens, strict=True):
            part.sample = Sample(ids, mask, part.example.where)
        for part, ids in zip(documents, tokenize_documents(self._tokenizer, [part.text for part in documents]), strict=True):
            part.sample = Sample(ids, np.ones(len(ids), np.bool_), part.example.where)
        for draft in batch:
            try:
                yield self._items(draft)
            except DataError as error:
                if self._data.on_bad_row == "error":
                    raise
                yield [Item(draft.where, 0, None, str(error), bad=True)]

    def _items(self, draft: _Draft) -> list[Item]:
        """The items of a row that is tokenized.

        Raises:
            DataError: the row can't be used.
        """
        if draft.error is not None or draft.example is None:
            raise draft.error or DataError(draft.where)
        example = draft.example
        if draft.too_long:
            reason = f"longer than {self._limit} tokens ({draft.too_long:,} characters)"
            num_tokens = draft.too_long // self._longest_token
            return [Item(example.where, num_tokens, None, reason, format=example.format, unused=example.unused)]
        omitted = tuple(dict.fromkeys(kind for part in draft.parts.values() for kind in part.omitted))
        if not isinstance(example, ExampleGroup):
            sample = self._trained(draft.parts[""])
            return cut(example, sample, omitted, self._limit, self._data)
        samples = []
        for role, part in draft.parts.items():
            with naming_role(example.where, role):
                samples.append(replace(self._trained(part), role=role))
        return cut_group(example, samples, omitted, self._limit, self._data.on_long)

    def _trained(self, part: _Part) -> Sample:
        """The sample of a part.

        Raises:
            DataError: the model has no embedding for one of its tokens, or nothing in it is trained.
        """
        assert part.sample is not None
        check_embedded(self._tokenizer, part.sample.input_ids, part.example.where)
        if not has_loss(part.sample):
            raise DataError(f"{part.example.where}: nothing in this row is trained: {_why_nothing(part.example)}")
        return part.sample


def _why_nothing(example: Example) -> str:
    if isinstance(example, Tokens):
        return "no token behind the first one has loss. Take the row out"
    if isinstance(example, Document):
        return "it is a single token. Take the row out"
    if example.without_loss:
        return 'its turns have "loss": false, or are not what data.loss_on asks for. Take the row out'
    return "the chat template marks none of the assistant's messages. Take the row out, or type data.template=FILE.jinja"
