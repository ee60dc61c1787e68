"""Evaluation sets: which rows are measured, as samples with a loss mask and as questions with an answer."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os.path import basename
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hub.config.data import DataSource
from hub.config.schema import RunConfig
from hub.data.formats.examples import Conversation
from hub.data.formats.preferences import PAIR, UNDESIRABLE
from hub.data.prepare import prepare
from hub.data.samples.counts import Counts
from hub.data.samples.length import length_limit
from hub.data.samples.mix import eval_source_of, sources_of
from hub.data.samples.sample import Sample, Unit
from hub.data.sources.entries import Cursor, Entry
from hub.data.sources.read import rows_after
from hub.data.token_cache import encoded_rows
from hub.data.tokens.encode import Encoder
from hub.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Say = Callable[[str], None]

SHIPPED = Path(__file__).with_name("retention.jsonl")
"""General text for `evaluate.retention=auto`: messages of presidents of the United States, in the public domain."""

RETENTION_TOKENS = 512
"""Longest sample of a retention set: documents are split."""

LEARNT, KEPT, OTHER = "learnt", "kept", "other"
"""What a set is for: what training is about, what it should not harm, anything else."""


@dataclass(frozen=True)
class Question:
    """A row with an answer."""

    prompt: tuple[int, ...]
    """Token ids up to where the answer begins, as in training."""

    reference: str
    """The row's own answer."""

    row: Mapping[str, Any]
    """All fields of the row."""

    where: str


@dataclass(frozen=True)
class EvaluationSet:
    """Rows that are measured together."""

    name: str
    role: str
    samples: tuple[Sample, ...]
    rows: tuple[int, ...]
    """The row of each sample, from 0: a long document has several samples."""

    questions: tuple[Question, ...] = field(default=())

    @property
    def num_rows(self) -> int:
        return len(set(self.rows))


@dataclass(frozen=True)
class Encoding:
    """What rows are encoded with."""

    tokenizer: "PreTrainedTokenizerBase"
    max_positions: int | None
    base_path: Path | None
    """Local folder with the same tokenizer."""

    say: Say


def make_set(
    name: str,
    role: str,
    cfg: RunConfig,
    encoding: Encoding,
    limit: int | None,
    with_questions: bool,
    units: Sequence[Unit] | None = None,
    reads: Callable[[str], bool] = lambda field: False,
) -> EvaluationSet:
    """Read and encode an evaluation set.

    Args:
        name: of the set.
        role: what it is for.
        cfg: `data` says which rows: those of `eval_path`, those that `eval_fraction` holds out with `algo.seed`, or all.
        encoding: tokenizer and lengths.
        limit: first rows that are taken. None: all.
        with_questions: whether answers are generated.
        units: the encoded rows, if they are known already.
        reads: whether a metric reads a field of the rows.

    Raises:
        DataError: a row can't be used, or nothing is left.
    """
    units = _units(cfg, encoding, reads) if units is None else units
    samples, numbers, seen = [], [], dict[str, int]()
    for unit in units:
        place = row_of(unit)
        if place not in seen and limit is not None and len(seen) == limit:
            break
        sample = next((one for one in unit.samples if one.role == PAIR[0]), unit.samples[0])
        if sample.role == UNDESIRABLE:
            continue  # what is to become less likely
        samples.append(sample)
        numbers.append(seen.setdefault(place, len(seen)))
    if not samples:
        raise DataError(f"the evaluation set {name} has no row. Type data.path=FILE with rows that fit the model")
    questions = _questions(cfg, encoding, list(seen)) if with_questions else ()
    return EvaluationSet(name, role, tuple(samples), tuple(numbers), questions)


def row_of(unit: Unit) -> str:
    """The row that a unit is from, without the number of its part."""
    return re.sub(r" part \d+$", "", unit.where)


def retention_config(cfg: RunConfig, path: str, max_positions: int | None) -> RunConfig:
    """The config of a retention set: general text, split into samples of one length."""
    longest = min(RETENTION_TOKENS, max_positions or RETENTION_TOKENS)
    data = replace(
        type(cfg.data)(),
        path=str(SHIPPED if path == "auto" else Path(path).expanduser()),
        template=cfg.data.template,
        date=cfg.data.date,
        max_seq_len=longest,
        on_long="split",
    )
    return replace(cfg, data=data)


def _units(cfg: RunConfig, encoding: Encoding, reads: Callable[[str], bool]) -> Sequence[Unit]:
    if cfg.data.eval_fraction and not cfg.data.eval_path:
        prepared = prepare(cfg, encoding.tokenizer, encoding.max_positions, encoding.base_path, encoding.say)
        return prepared.evaluation
    counts = Counts.merge([_counts(cfg, source, encoding) for source in _sources(cfg)])
    counts.unused = {field for field in counts.unused if not reads(field)}
    limit = length_limit(cfg, encoding.max_positions)
    for line in counts.lines(limit, "Type a larger data.max_seq_len if the model can hold more."):
        encoding.say(line)
    return counts.units


def _sources(cfg: RunConfig) -> list[DataSource]:
    evaluation = eval_source_of(cfg.data)
    return sources_of(cfg.data) if evaluation is None else [evaluation]


def _counts(cfg: RunConfig, source: DataSource, encoding: Encoding) -> Counts:
    limit = length_limit(cfg, encoding.max_positions)
    rows = encoded_rows(cfg, source, encoding.tokenizer, limit, encoding.base_path, encoding.say)
    return Counts.of(rows, cfg.data.block_size)


def _questions(cfg: RunConfig, encoding: Encoding, wanted: Sequence[str]) -> tuple[Question, ...]:
    """The rows of these places that have an answer, in this order."""
    limit = length_limit(cfg, encoding.max_positions)
    data = replace(cfg.data, loss_on="last", on_bad_row="skip", on_long="drop", block_size=None)
    places, found = set(wanted), dict[str, Question]()
    for source in _sources(cfg):
        entries: dict[str, Entry] = {}
        for entry, _ in rows_after(source.path, Cursor(), source.subset, source.split, stream=False):
            place = f"{basename(entry.file)}:{entry.line}"
            if place in places:
                if place in entries or place in found:
                    raise DataError(f"{source.path}: two files have the name {basename(entry.file)}. Rename one of them")
                entries[place] = entry
        encoder = Encoder(encoding.tokenizer, data, source, limit)
        for (place, entry), (item, *_) in zip(entries.items(), encoder.many(entries.values()), strict=True):
            if isinstance(item.unit, Sample) and (question := _question(encoder, entry, item.unit, encoding)):
                found[place] = question
    return tuple(found[place] for place in wanted if place in found)


def _question(encoder: Encoder, entry: Entry, sample: Sample, encoding: Encoding) -> Question | None:
    """The prompt and the answer of a row. None: it has no prompt, such as a document."""
    trained = np.flatnonzero(sample.loss_mask)
    start = int(trained[0])
    example = encoder.example(entry)
    if start == 0 or not sample.loss_mask[start:].any():
        return None
    reference = ""
    if isinstance(example, Conversation):
        answers = [message for message in example.messages if message["role"] == "assistant"]
        content = answers[-1].get("content") if answers else None
        reference = content if isinstance(content, str) else ""
    reference = reference or str(encoding.tokenizer.decode(sample.input_ids[trained], skip_special_tokens=True))
    return Question(tuple(sample.input_ids[:start].tolist()), reference.strip(), entry.read().value, sample.where)
