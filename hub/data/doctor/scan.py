"""Reads and encodes the rows of a source, and records what the findings need of each."""

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING

from hub.config.data import DataSource
from hub.config.schema import RunConfig
from hub.data.doctor.oddities import BROKEN_TEXT, odd_order
from hub.data.doctor.pairs import ScannedPair, scanned_pair
from hub.data.formats.examples import Conversation, Document, Example, ExampleGroup, RowExample
from hub.data.formats.file_format import FileFormats
from hub.data.samples.counts import Counts
from hub.data.samples.sample import Item
from hub.data.sources.entries import Cursor
from hub.data.sources.read import rows_after
from hub.data.tokens.encode import Encoder
from hub.data.tokens.rendered_before import RenderedBefore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_ROWS = 200_000
"""Rows of each source that are inspected."""


@dataclass
class ScannedRow:
    """A row that can be used."""

    where: str
    prompt: str
    """Digest of what comes before the first answer. Empty: there is nothing."""

    content: str
    """Digest of all of it."""

    text: str
    """Its text, for near duplicates."""


@dataclass
class Scan:
    """All rows of one source."""

    counts: Counts = field(default_factory=Counts)
    rows: list[ScannedRow] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    """Tokens of each row that can be used, before it is cut. Of a row with several samples, of the longest."""

    texts: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """What is odd in a text -> where."""

    orders: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """What is odd in the order of turns -> where."""

    pairs: list[ScannedPair] = field(default_factory=list)
    """Of preferences: what is compared."""

    unseen_columns: list[str] = field(default_factory=list)
    """What is wrong with each name of `data.columns` that no row has."""

    has_more: bool = False
    """Whether there are rows that were not inspected."""


def scan(
    cfg: RunConfig,
    source: DataSource,
    tokenizer: "PreTrainedTokenizerBase",
    limit: int | None,
    rendered: RenderedBefore,
) -> Scan:
    """Read and encode the rows of one source. Bad rows are counted, whatever `data.on_bad_row` is.

    Args:
        cfg: the run; its `data` is read.
        source: where the rows come from.
        tokenizer: the tokenizer of the model.
        limit: tokens of the longest sample.
        rendered: is shown each row.

    Raises:
        HubError: the source can't be read at all.
    """
    data = replace(cfg.data, on_bad_row="skip", on_long="drop" if cfg.data.on_long == "error" else cfg.data.on_long)
    encode, formats = Encoder(tokenizer, data, source, limit), FileFormats(source, data)
    rows: list[list[Item]] = []
    result = Scan()
    entries = rows_after(source.path, Cursor(), source.subset, source.split, stream=False)
    for entry, _ in islice(entries, MAX_ROWS):
        items = encode(entry)
        rows.append(items)
        if not items[0].bad:
            example = formats.example(entry)
            examples = _examples(example)
            _record(result, items, examples)
            if isinstance(example, ExampleGroup) and (pair := scanned_pair(items[0], example, entry.read().value)):
                result.pairs.append(pair)
            rendered.add(result.rows[-1].where, examples)
    result.has_more = next(entries, None) is not None
    result.unseen_columns = formats.unseen_columns()
    result.counts = Counts.of(rows, data.block_size)
    return result


def _examples(example: RowExample) -> list[Example]:
    return list(example.examples.values()) if isinstance(example, ExampleGroup) else [example]


def _record(result: Scan, items: list[Item], examples: list[Example]) -> None:
    first = items[0]
    where = first.where.split(" part ")[0]
    result.lengths.append(first.longest or sum(item.num_tokens for item in items) + first.num_cut)
    text = "\n".join(map(_text, examples))
    result.rows.append(ScannedRow(where, _prompt(examples[0]), _digest([_content(each) for each in examples]), text))
    for name, pattern in BROKEN_TEXT.items():
        if pattern.search(text):
            result.texts[name].append(where)
    for name in dict.fromkeys(name for each in examples for name in odd_order(each)):
        result.orders[name].append(where)


def _prompt(example: Example) -> str:
    if not isinstance(example, Conversation):
        return ""
    first = next((n for n, message in enumerate(example.messages) if message["role"] == "assistant"), 0)
    return _digest([example.messages[:first], example.tools]) if first else ""


def _content(example: Example) -> object:
    if isinstance(example, Conversation):
        return [example.messages, example.tools]
    return example.text if isinstance(example, Document) else example.input_ids


def _text(example: Example) -> str:
    if isinstance(example, Conversation):
        return "\n".join(str(message["content"]) for message in example.messages)
    return example.text if isinstance(example, Document) else ""


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode("utf-8", "surrogatepass")).hexdigest()
