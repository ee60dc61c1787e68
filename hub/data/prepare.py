"""The data of one run: its rows are read, checked, split off for evaluation, encoded, measured. Imported by workers only.

Every rank does the same and gets the same: the result depends on the config and the files alone.
"""

from array import array
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from hub.config.option import AUTO
from hub.config.schema import RunConfig
from hub.data.formats.examples import ExampleGroup
from hub.data.samples.counts import Counts
from hub.data.samples.duplicates import find_duplicates
from hub.data.samples.histogram import lengths_of
from hub.data.samples.length import advice_on_long_rows, length_limit
from hub.data.samples.mix import Mix, eval_source_of, make_mix, num_held_out, sources_of
from hub.data.samples.reports import DataReport, MixReport, Totals
from hub.data.samples.sample import Item, Sample, Unit, longest_sample
from hub.data.sources.entries import Cursor
from hub.data.sources.files import files_line
from hub.data.sources.read import rows_after
from hub.data.token_cache import cache_tokens, encoded_rows, is_large
from hub.data.tokens.encode import Encoder
from hub.data.tokens.omissions import omission_lines
from hub.data.tokens.rendered_before import RenderedBefore
from hub.data.tokens.template import fallback_line, load_template, require_template, template_report
from hub.data.tokens.template_date import writes_date
from hub.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hub.config.data import DataSource

__all__ = ["Prepared", "Sample", "Unit", "cache_large_sources", "prepare"]

NUM_FIRST_ROWS = 256
"""Rows of each source of a stream that are checked before training."""

_NOT_RENDERED = {"document", "tokens"}


@dataclass
class Prepared:
    """The units of a run, and what became of the data."""

    train: Sequence[Unit]
    """The sources of `mix` one after the other. Of a stream: its first units, as a preview."""

    evaluation: Sequence[Unit]
    """The evaluation set. Empty when none was asked for."""

    mix: Mix
    """What each source gives to the run."""

    limit: int | None
    """Longest sample in tokens."""

    report: DataReport
    """Counts, and each row that was left out: for plan.json."""

    lines: list[str]
    """The report in short, to be printed."""

    @property
    def longest(self) -> int:
        """Tokens of the longest sample that is in memory."""
        return longest_sample(chain(self.train, self.evaluation))


@dataclass
class _Encoded:
    """What was made of all sources."""

    sources: "list[DataSource]"
    train: list[Counts]
    """Of each source."""

    evaluation: list[Counts]


def prepare(
    cfg: RunConfig,
    tokenizer: "PreTrainedTokenizerBase",
    max_positions: int | None,
    base_path: Path | None = None,
    report: Callable[[str], None] = lambda line: None,
    reads: Callable[[str], bool] = lambda field: False,
) -> Prepared:
    """Read and encode the training data and the evaluation set of a run. Of a stream only the first rows.

    Args:
        cfg: the run; `data`, `algo.seed` and, for a stream, `algo.max_tokens_per_gpu` are read.
        tokenizer: its chat template becomes that of `data.template`, when set. A tokenizer without a template gets one.
        max_positions: the longest sequence in tokens that the model can hold. None: any.
        base_path: local folder with the same tokenizer. With it several processes encode large sources into the token cache.
        report: takes a line about something slow.
        reads: whether anything else reads a field of the rows, such as a metric.

    Raises:
        ConfigError: `data.max_seq_len` or `data.block_size` is above `max_positions`.
        DataError: a row can't be used, or nothing is left to train or to evaluate on.
    """
    limit = length_limit(cfg, max_positions)
    if cfg.data.template:
        load_template(tokenizer, cfg.data.template)
    has_template = bool(tokenizer.chat_template)
    encoded = _encode(cfg, tokenizer, limit, base_path, report)
    train, evaluation = Counts.merge(encoded.train), Counts.merge(encoded.evaluation)
    both = Counts.merge([train, evaluation])
    both.unused = {field for field in both.unused if not reads(field)}
    _check(cfg, encoded, evaluation, max_positions, limit)
    _check_blocks(cfg, both)
    mix = make_mix(encoded.sources, _sizes(cfg, encoded))
    rendered = both.formats - _NOT_RENDERED
    if rendered:
        require_template(tokenizer)  # other processes may have done the rendering
    template = template_report(tokenizer, train.whole_samples(), cfg.data.loss_on) if rendered else both.loss_line()
    if rendered and writes_date(tokenizer) and cfg.data.date != AUTO:
        template += f" The chat template writes a date: {cfg.data.date} (data.date)."
    duplicates = find_duplicates(train.units, evaluation.units)
    every = [*encoded.sources, *filter(None, [eval_source_of(cfg.data)])]
    files = [line for source in every if (line := files_line(source.path, source.split))]
    totals, held_out = train.totals(), evaluation.totals()
    lines = [_summary(cfg, train, totals, held_out, evaluation.formats), *files]
    required = max((item.required_length for item in both.left_out), default=0)
    lines += both.lines(limit, advice_on_long_rows(cfg.data.max_seq_len, required, max_positions))
    lines += omission_lines(both.omitted, tokenizer)
    if rendered and not has_template:
        lines.append(fallback_line(tokenizer))
    lines += _rendered_lines(cfg, every, tokenizer, limit)
    lines += [*duplicates.lines(len(train.units), len(evaluation.units)), template]
    plan: DataReport = {
        "path": cfg.data.path or None,
        "eval_path": cfg.data.eval_path,
        "streaming": cfg.data.streaming,
        "files": files,
        "formats": sorted(both.formats),
        "fields_not_used": sorted(both.unused),
        "max_seq_len": limit,
        "train": totals,
        "evaluation": held_out,
        "lengths": lengths_of(train.units.sample_lengths(), limit),
        **both.omissions(),
        "template": template,
        "num_samples_repeated": len(duplicates.repeated),
        "num_held_out_samples_in_training_data": len(duplicates.leaked),
        "sources": _source_reports(mix, encoded) if len(encoded.sources) > 1 else [],
    }
    return Prepared(train.units, evaluation.units, mix, limit, plan, lines)


def _rendered_lines(
    cfg: RunConfig, sources: "Sequence[DataSource]", tokenizer: "PreTrainedTokenizerBase", limit: int | None
) -> list[str]:
    """What to say about special tokens in the texts of the first rows. The doctor looks into all rows."""
    rendered = RenderedBefore(tokenizer)
    for source in sources:
        encode = Encoder(tokenizer, cfg.data, source, limit)
        entries = rows_after(source.path, Cursor(), source.subset, source.split, stream=cfg.data.streaming)
        for entry, _ in islice(entries, NUM_FIRST_ROWS):
            with suppress(DataError):
                example = encode.example(entry)
                examples = example.examples.values() if isinstance(example, ExampleGroup) else [example]
                rendered.add(example.where, examples)
    return rendered.lines()


def cache_large_sources(
    cfg: RunConfig,
    tokenizer: "PreTrainedTokenizerBase",
    max_positions: int | None,
    base_path: Path,
    report: Callable[[str], None],
) -> None:
    """Encode the large sources of a run into the token cache, where `prepare` finds them in every process of this machine."""
    limit = length_limit(cfg, max_positions)
    sources = [] if cfg.data.streaming else sources_of(cfg.data)
    for source in [*sources, *filter(None, [eval_source_of(cfg.data)])]:
        if is_large(source):
            cache_tokens(cfg, source, tokenizer, limit, base_path, report)


def _encode(
    cfg: RunConfig,
    tokenizer: "PreTrainedTokenizerBase",
    limit: int | None,
    base_path: Path | None,
    report: Callable[[str], None],
) -> _Encoded:
    encoded = _Encoded(sources_of(cfg.data), [], [])
    max_rows = NUM_FIRST_ROWS if cfg.data.streaming else None
    for source in encoded.sources:
        rows = encoded_rows(cfg, source, tokenizer, limit, base_path, report, max_rows)
        if cfg.data.eval_fraction:
            chosen = _hold_out(rows, cfg.data.eval_fraction, cfg.algo.seed, source.path)
            held_out = (items for number, items in enumerate(rows) if number in chosen)
            encoded.evaluation.append(Counts.of(held_out, cfg.data.block_size))
            train = (items for number, items in enumerate(rows) if number not in chosen)
            encoded.train.append(Counts.of(train, cfg.data.block_size))
        else:
            encoded.train.append(Counts.of(rows, cfg.data.block_size))
    if evaluation_source := eval_source_of(cfg.data):
        rows = encoded_rows(cfg, evaluation_source, tokenizer, limit, base_path, report)
        encoded.evaluation.append(Counts.of(rows, cfg.data.block_size))
    return encoded


def _check(cfg: RunConfig, encoded: _Encoded, evaluation: Counts, max_positions: int | None, limit: int | None) -> None:
    """Refuse a source, or an evaluation set, of which nothing is left."""
    for counts, source in zip(encoded.train, encoded.sources, strict=True):
        _require_units(counts, "train on", source.path, cfg, max_positions, limit)
    if encoded.evaluation:
        _require_units(evaluation, "evaluate on", cfg.data.eval_path or "", cfg, max_positions, limit)


def _check_blocks(cfg: RunConfig, both: Counts) -> None:
    if cfg.data.block_size is not None and "document" not in both.formats:
        raise ConfigError(
            f"data.block_size={cfg.data.block_size} joins raw documents, but these rows are "
            f"{', '.join(sorted(both.formats))}. Leave block_size out, or name the column: data.text_column=NAME"
        )


def _require_units(counts: Counts, verb: str, path: str, cfg: RunConfig, max_positions: int | None, limit: int | None) -> None:
    if counts.units:
        return
    of = f" of {path}" if path else ""
    if counts.left_out:
        shortest = min(item.required_length for item in counts.left_out)
        raise DataError(
            f"No row{of} is left to {verb}: all {len(counts.left_out)} are longer than {limit} tokens, the shortest "
            f"has {shortest}. {advice_on_long_rows(cfg.data.max_seq_len, shortest, max_positions)}"
        )
    first = f" The first: {counts.bad[0].reason}" if counts.bad else ""
    raise DataError(f"No row{of} is left to {verb}: {len(counts.bad)} bad rows are left out.{first}")


def _sizes(cfg: RunConfig, encoded: _Encoded) -> list[int | None]:
    """Units in one pass over each source. None: not known."""
    if cfg.data.streaming:
        return [source.num_rows for source in encoded.sources]
    return [len(counts.units) for counts in encoded.train]


def _source_reports(mix: Mix, encoded: _Encoded) -> list[MixReport]:
    return [
        {
            "name": name,
            "path": source.path,
            "share": float(share),
            "formats": sorted(counts.formats),
            **counts.totals(),
            **counts.omission_counts(),
        }
        for name, source, share, counts in zip(mix.names, encoded.sources, mix.shares, encoded.train, strict=True)
    ]


def _hold_out(rows: Iterable[list[Item]], fraction: float, seed: int, path: str) -> set[int]:
    """The numbers of the rows of the evaluation set. Bad rows are none of it."""
    good = array("q", (number for number, items in enumerate(rows) if not items[0].bad))
    if len(good) < 2:
        raise DataError(
            f"{path}: one row only, so there is none to spare for evaluation. Type data.eval_fraction=0, or give more rows"
        )
    return {good[place] for place in Random(seed).sample(range(len(good)), num_held_out(len(good), fraction))}


def _summary(cfg: RunConfig, train: Counts, totals: Totals, held_out: Totals, formats_held_out: set[str]) -> str:
    share = totals["num_loss_tokens"] / totals["num_tokens"]
    formats = ", ".join(sorted(train.formats | formats_held_out))
    begin = "a stream, of which the first " if cfg.data.streaming else ""
    verb = " are" if cfg.data.streaming else ","
    what = f"{totals['num_samples']:,} samples"
    if totals["num_units"] < totals["num_samples"]:
        what = f"{totals['num_units']:,} units of {what}"
    text = (
        f"Data: {begin}{what} ({formats}){verb} {totals['num_tokens']:,} tokens, {share:.0%} of them with loss, "
        f"longest {totals['longest']:,}."
    )
    if train.num_joined:
        text += f" They are {train.num_joined:,} documents, joined and cut to {cfg.data.block_size} tokens."
    return text + (f" Evaluation set: {held_out['num_samples']:,} samples." if held_out["num_samples"] else "")
