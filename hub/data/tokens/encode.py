"""From a row to the samples that it gives, or to the reason why it gives none."""

from pathlib import Path
from typing import Any

import numpy as np

from hub.config.data import DataConfig, DataSource
from hub.config.option import AUTO
from hub.data.formats.detect import convert, detect
from hub.data.formats.examples import Conversation, Document, Example, Tokens
from hub.data.samples.sample import Item, Sample
from hub.data.sources.read import Cursor, Entry, Row, rows_after
from hub.data.tokens.template import TooLongError, encode, encode_document, require_template
from hub.errors import DataError

LEAST_CHARACTERS = 1_000_000
"""Texts up to this are tokenised even if they are too long for sure, so that their length can be told."""


class Encoder:
    """Turns the rows of one source into items."""

    def __init__(self, tokenizer: Any, data: DataConfig, source: DataSource, limit: int | None) -> None:
        """Args:
        tokenizer: a Hugging Face tokenizer. Without a chat template it gets one when the first conversation comes.
        data: what is trained, and what happens to rows that are too long or bad.
        source: where the rows come from, and their format.
        limit: tokens of the longest sample. None: any.
        """
        self._tokenizer, self._data, self._source, self._limit = tokenizer, data, source, limit
        self._formats: dict[str, str] = {}
        self._ready = False
        # A text of more characters than that is too long for sure. A token for unknown text may stand for any number of them.
        self._longest_token = 0
        if limit is not None and data.on_long in (AUTO, "drop") and tokenizer.unk_token is None:
            self._longest_token = max(map(len, tokenizer.get_vocab()))

    def __call__(self, entry: Entry) -> list[Item]:
        """Encode one row: one item, or several where it is split.

        Raises:
            DataError: it can't be used, and data.on_bad_row=error.
        """
        try:
            example = self.example(entry)
            try:
                return self._cut(example, *self._sample(example))
            except TooLongError as error:
                reason = f"longer than {self._limit} tokens ({error.num_characters:,} characters)"
                least = error.num_characters // self._longest_token
                return [Item(example.where, least, None, reason, format=example.format, unused=example.unused)]
        except DataError as error:
            if self._data.on_bad_row == "error":
                raise
            return [Item(f"{Path(entry.file).name}:{entry.line}", 0, None, str(error), bad=True)]

    def example(self, entry: Entry) -> Example:
        """What a row is, before it becomes tokens.

        Raises:
            DataError: it can't be used.
        """
        row = entry.read()
        return convert(row, self._format(row), self._data.text_column)

    def _format(self, row: Row) -> str:
        """The format of a row's file: that of the file's first row, which may be long past."""
        if self._data.text_column is not None:
            return "document"
        if self._source.format != AUTO:
            return self._source.format
        if row.file not in self._formats:
            self._formats[row.file] = detect(_first_row(row, self._source))
        return self._formats[row.file]

    def _sample(self, example: Example) -> tuple[Sample, bool]:
        """All of a row as one sample, and whether the chat template leaves something out."""
        if isinstance(example, Conversation):
            if not self._ready:
                require_template(self._tokenizer)
                self._ready = True
            most = max(LEAST_CHARACTERS, self._longest_token * (self._limit or 0)) if self._longest_token else None
            encoded = encode(self._tokenizer, example, self._data.loss_on, most)
            found = Sample(np.asarray(encoded.input_ids, np.int32), np.asarray(encoded.loss_mask, np.bool_), example.where)
            omitted = encoded.num_omitted > 0
        elif isinstance(example, Tokens):
            most = len(self._tokenizer)
            if max(example.input_ids) >= most:
                raise DataError(
                    f"{example.where}: input_ids has {max(example.input_ids)}, but the model's tokenizer has {most} tokens. "
                    "Were they made with another tokenizer?"
                )
            found = Sample(np.asarray(example.input_ids, np.int32), np.asarray(example.loss_mask, np.bool_), example.where)
            omitted = False
        else:
            ids = encode_document(self._tokenizer, example.text)
            found, omitted = Sample(np.asarray(ids, np.int32), np.ones(len(ids), np.bool_), example.where), False
        # The first token has nothing before it that could foretell it.
        if not found.loss_mask[1:].any():
            raise DataError(f"{example.where}: nothing in this row is trained: {_why_nothing(example)}")
        return found, omitted

    def _cut(self, example: Example, sample: Sample, omitted: bool) -> list[Item]:
        """The sample as it is, cut, split or left out."""
        item = Item(sample.where, len(sample), sample, omitted=omitted, format=example.format, unused=example.unused)
        limit, size = self._limit, len(sample)
        in_blocks = isinstance(example, Document) and self._data.block_size is not None
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
            return [item._replace(sample=None, reason=f"longer than {limit} tokens")]
        starts = range(0, size if on_long == "split" else 1, limit)
        parts = [_part(sample, start, limit, len(starts)) for start in starts]
        kept = [part for part in parts if part.loss_mask[1:].any()]
        if not kept:
            return [item._replace(sample=None, reason=f"nothing is trained in its first {limit} tokens")]
        num_cut = size - sum(map(len, kept))
        items = [Item(part.where, len(part), part, format=example.format, unused=example.unused) for part in kept]
        return [items[0]._replace(num_cut=num_cut, omitted=omitted), *items[1:]]


def _part(sample: Sample, start: int, size: int, num_parts: int) -> Sample:
    stop = start + size
    where = f"{sample.where} part {start // size + 1}" if num_parts > 1 else sample.where
    return Sample(sample.input_ids[start:stop], sample.loss_mask[start:stop], where)


def _first_row(row: Row, source: DataSource) -> Row:
    """The first good row of the file that a row is from."""
    for entry, _ in rows_after(row.file, Cursor(), source.subset, source.split, stream=False):
        try:
            return entry.read()
        except DataError:
            continue
    return row


def _why_nothing(example: Example) -> str:
    if isinstance(example, Tokens):
        return "no label is a token. Take the row out"
    if isinstance(example, Document):
        return "it is a single token. Take the row out"
    if example.without_loss:
        return 'its turns have "loss": false, or are not what data.loss_on asks for. Take the row out'
    return "the chat template leaves out what the assistant says. Take the row out, or type data.template=FILE.jinja"
