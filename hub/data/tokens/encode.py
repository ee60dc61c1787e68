"""From a row to the units that it gives, or to the reason why it gives none."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hub.config.data import DataConfig, DataSource
from hub.config.option import AUTO
from hub.data.formats.examples import Conversation, Document, Example, ExampleGroup, RowExample, Tokens, naming_role
from hub.data.formats.file_format import FileFormats
from hub.data.samples.sample import Group, Item, Sample
from hub.data.sources.entries import Entry
from hub.data.tokens.template import TooLongError, encode, encode_document, require_template
from hub.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MIN_CHARACTERS_SKIPPED = 1_000_000
"""Shorter texts are tokenized even if they are too long for sure, so that their length can be reported."""


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
        try:
            example = self.example(entry)
            try:
                return self._group(example) if isinstance(example, ExampleGroup) else self._cut(example, *self._sample(example))
            except TooLongError as error:
                reason = f"longer than {self._limit} tokens ({error.num_characters:,} characters)"
                num_tokens = error.num_characters // self._longest_token
                return [Item(example.where, num_tokens, None, reason, format=example.format, unused=example.unused)]
        except DataError as error:
            if self._data.on_bad_row == "error":
                raise
            return [Item(f"{Path(entry.file).name}:{entry.line}", 0, None, str(error), bad=True)]

    def example(self, entry: Entry) -> RowExample:
        """What a row is before it becomes tokens.

        Raises:
            DataError: the row can't be used.
        """
        return self._formats.example(entry)

    def _sample(self, example: Example) -> tuple[Sample, bool]:
        """The whole example as one sample, and whether the chat template leaves something out."""
        omitted = False
        if isinstance(example, Conversation):
            encoded = encode(self._prepared_tokenizer(), example, self._data.loss_on, self._max_characters())
            sample = Sample(np.asarray(encoded.input_ids, np.int32), np.asarray(encoded.loss_mask, np.bool_), example.where)
            omitted = encoded.num_omitted > 0
        elif isinstance(example, Tokens):
            num_known = len(self._tokenizer)
            if max(example.input_ids) >= num_known:
                raise DataError(
                    f"{example.where}: input_ids has {max(example.input_ids)}, but the model's tokenizer has {num_known} "
                    "tokens. Were they made with another tokenizer?"
                )
            sample = Sample(np.asarray(example.input_ids, np.int32), np.asarray(example.loss_mask, np.bool_), example.where)
        else:
            ids = encode_document(self._tokenizer, example.text)
            sample = Sample(np.asarray(ids, np.int32), np.ones(len(ids), np.bool_), example.where)
        if not _has_loss(sample):
            raise DataError(f"{example.where}: nothing in this row is trained: {_why_nothing(example)}")
        return sample, omitted

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

    def _cut(self, example: Example, sample: Sample, omitted: bool) -> list[Item]:
        """The sample as it is, cut, split or left out."""
        item = Item(sample.where, len(sample), sample, omitted=omitted, format=example.format, unused=example.unused)
        limit, size = self._limit, len(sample)
        in_blocks = example.format == "document" and self._data.block_size is not None
        if limit is None or size <= limit or in_blocks:
            return [item]
        on_long = self._data.on_long
        if on_long == AUTO:
            on_long = "split" if isinstance(example, Document) else "drop"
        if on_long == "error":
            raise DataError(
                f"{sample.where}: this row has {size:,} tokens, more than {limit:,}. Type data.on_long=drop, truncate or split"
            )
        if on_long == "drop":
            return [item._replace(unit=None, reason=f"longer than {limit} tokens")]
        starts = range(0, size if on_long == "split" else 1, limit)
        pieces = [_piece(sample, start, limit, len(starts)) for start in starts]
        trained = [piece for piece in pieces if _has_loss(piece)]
        if not trained:
            return [item._replace(unit=None, reason=f"nothing is trained in its first {limit} tokens")]
        num_cut = size - sum(map(len, trained))
        items = [Item(piece.where, len(piece), piece, format=example.format, unused=example.unused) for piece in trained]
        return [items[0]._replace(num_cut=num_cut, omitted=omitted), *items[1:]]

    def _group(self, row: ExampleGroup) -> list[Item]:
        """The samples of a row as one unit: all of them whole, all of them cut to the limit, or none."""
        samples: list[Sample] = []
        omitted = False
        for role, example in row.examples.items():
            with naming_role(row.where, role):
                sample, omits = self._sample(example)
            samples.append(replace(sample, role=role))
            omitted = omitted or omits
        group = Group(tuple(samples), row.where, row.format)
        longest = max(samples, key=len)
        size, limit, on_long = len(longest), self._limit, self._data.on_long
        item = Item(row.where, len(group), group, omitted=omitted, format=row.format, unused=row.unused, longest=size)
        if limit is None or size <= limit:
            return [item]
        if on_long in ("error", "split"):
            todo = "A row with several samples can't be split. " if on_long == "split" else ""
            raise DataError(
                f"{row.where}: {longest.role} has {size:,} tokens, more than {limit:,}. {todo}"
                "Type data.on_long=drop or truncate"
            )
        if on_long != "truncate":
            return [item._replace(unit=None, reason=f"{longest.role} is longer than {limit} tokens")]
        cut = Group(tuple(_piece(sample, 0, limit, 1) for sample in samples), row.where, row.format)
        if empty := [sample.role for sample in cut.samples if not _has_loss(sample)]:
            return [item._replace(unit=None, reason=f"nothing is trained in the first {limit} tokens of {empty[0]}")]
        return [item._replace(unit=cut, num_tokens=len(cut), num_cut=len(group) - len(cut))]


def _piece(sample: Sample, start: int, size: int, num_pieces: int) -> Sample:
    stop = start + size
    where = f"{sample.where} part {start // size + 1}" if num_pieces > 1 else sample.where
    return replace(sample, input_ids=sample.input_ids[start:stop], loss_mask=sample.loss_mask[start:stop], where=where)


def _has_loss(sample: Sample) -> bool:
    """Whether a token is trained. The first can't be: nothing before it predicts it."""
    return bool(sample.loss_mask[1:].any())


def _why_nothing(example: Example) -> str:
    if isinstance(example, Tokens):
        return "no label is a token. Take the row out"
    if isinstance(example, Document):
        return "it is a single token. Take the row out"
    if example.without_loss:
        return 'its turns have "loss": false, or are not what data.loss_on asks for. Take the row out'
    return "the chat template leaves out the assistant's messages. Take the row out, or type data.template=FILE.jinja"
