"""Tokens of a run's data: counted where that takes a second, else from a sample with its error. No torch.

Rows become tokens by the very code of a run (`hub.data.prepare`, `hub.data.tokens.encode`), so what a run refuses is refused
here in the same words.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

from hub.config.data import DataSource
from hub.config.paths import is_hub_id
from hub.config.schema import RunConfig
from hub.data.formats.file_format import FileFormats
from hub.data.prepare import prepare
from hub.data.samples.length import length_limit
from hub.data.samples.mix import Mix, eval_source_of, make_mix, num_held_out, sources_of
from hub.data.samples.sample import Item, mask_sum
from hub.data.sources.entries import Broken, Row, Unread
from hub.data.sources.files import data_files
from hub.data.tokens.encode import Encoder
from hub.data.tokens.template import load_template
from hub.errors import DataError
from hub.plan.sampled_rows import Picked, Sampled, sample_rows, texts_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EXACT_BYTES = 2 * 2**20
"""Sources of no more bytes than that together are read as a whole: one or two seconds."""

NUM_LENGTHS = 1000
"""Samples whose lengths stand for all. A run draws from so many when it chooses its micro-batches."""

BYTES_PER_TOKEN = 4.0
"""Bytes of text for a token, where no tokenizer is at hand: English with a vocabulary of 32,000 to 256,000 has 3.5 to 4.7."""

GUESSED = (0.7, 1.8)
"""Tokens over those that `BYTES_PER_TOKEN` gives: chat templates, code and other languages have more."""

ORDER_ERROR = 0.1
"""Relative error at least, if only the first rows were read."""


@dataclass(frozen=True, kw_only=True)
class DataTokens:
    """The tokens of a run's data."""

    mix: Mix
    """What each source gives, as in the run."""

    tokens_per_unit: float
    """Mean over the run's units, in the shares of the mix."""

    error: float
    """Standard error of `tokens_per_unit`, relative. 0: counted."""

    lengths: tuple[int, ...]
    """Tokens of some samples, in equal parts: what `draw_loads` takes."""

    population: tuple[int, ...]
    """Tokens of as many samples as are known, to ask what share is longer than something."""

    longest: int
    """Tokens of the longest sample that was seen, evaluation included. No sample is longer than `limit`."""

    limit: int | None
    """Tokens beyond which a sample is cut or left out. None: any length is trained."""

    num_rows: int
    """Rows of the data, as far as they are known."""

    num_left_out: int = 0
    """Rows that are too long, or bad."""

    num_eval_tokens: int = 0
    loss_share: float = 1.0
    """Fraction of the tokens that have a loss. 1 if there is no tokenizer to tell."""

    guessed: bool = False
    """Whether there was no tokenizer."""

    how: str = ""
    """Where the numbers come from, in words."""

    lines: tuple[str, ...] = field(default=())
    """What the run would log about its data, where it was counted."""

    @property
    def exact(self) -> bool:
        """Whether all rows were tokenized."""
        return not self.error and not self.guessed

    @property
    def per_pass(self) -> int | None:
        """Units of one pass. None: a stream of unknown length."""
        return self.mix.per_pass

    @property
    def tokens_per_pass(self) -> float | None:
        """Tokens of one pass. None: a stream of unknown length."""
        return None if self.per_pass is None else self.per_pass * self.tokens_per_unit

    @property
    def spread(self) -> tuple[float, float]:
        """Factors on `tokens_per_unit` between which the truth lies: two standard errors, or the bounds of a guess."""
        low, high = GUESSED if self.guessed else (1.0, 1.0)
        return low * max(0.0, 1 - 2 * self.error), high * (1 + 2 * self.error)

    @property
    def mean_square(self) -> float:
        """Mean of a sample's squared tokens over its mean tokens: the length that attention sees."""
        return sum(n * n for n in self.lengths) / max(1, sum(self.lengths))

    def share_longer(self, length: int) -> float:
        """Share of the samples that have more tokens than `length`."""
        return sum(tokens > length for tokens in self.population) / max(1, len(self.population))


@dataclass
class _Estimate:
    """What a sample says of one source."""

    num_rows: float
    units: float
    tokens: float
    variance: float
    """Of `tokens`."""

    longest: int
    left_out: float
    lengths: list[int]
    loss_share: float
    counted: bool
    num_sampled: int
    in_order: bool


def data_tokens(
    cfg: RunConfig,
    tokenizer: "PreTrainedTokenizerBase | None",
    max_positions: int | None,
    exact_bytes: int = EXACT_BYTES,
) -> DataTokens | None:
    """Count or estimate the tokens of a run's data.

    Args:
        cfg: the run; `data`, `algo.seed` and `algo.max_tokens_per_gpu` are read.
        tokenizer: that of the run. None: tokens are guessed from bytes.
        max_positions: the longest sequence in tokens that the model can hold. None: any.
        exact_bytes: bytes of data up to which all rows are tokenized.

    Returns:
        None if no data is named, or if it is on the model hub: a plan downloads no data.

    Raises:
        DataError: what is wrong with the data, as `train` would say it.
        ConfigError: `data.max_seq_len` is above `max_positions`.
    """
    sources = sources_of(cfg.data)
    evaluation = eval_source_of(cfg.data)
    every = [*sources, *filter(None, [evaluation])]
    if not all(source.path for source in sources) or any(is_hub_id(source.path) for source in every):
        return None
    held = sum(file.stat().st_size for source in every for file in data_files(source.path, source.split))
    if tokenizer is not None and held <= exact_bytes and not cfg.data.streaming:
        return _counted(cfg, tokenizer, max_positions)
    limit = length_limit(cfg, max_positions)
    if tokenizer is not None and cfg.data.template:
        load_template(tokenizer, cfg.data.template)
    found = [_estimated(cfg, source, tokenizer, limit) for source in sources]
    measured = _estimated(cfg, evaluation, tokenizer, limit) if evaluation else None
    return _together(cfg, sources, found, measured, limit, tokenizer is None)


def _counted(cfg: RunConfig, tokenizer: "PreTrainedTokenizerBase", max_positions: int | None) -> DataTokens:
    """All rows, by the code of a run."""
    prepared = prepare(cfg, tokenizer, max_positions)
    train, totals = prepared.train, prepared.report["train"]
    mix = prepared.mix
    begin, mean, with_loss = 0, 0.0, 0.0
    for size, share in zip(mix.sizes, mix.shares, strict=True):
        units = train[begin : begin + (size or 0)]
        mean += float(share) * sum(map(len, units)) / max(1, len(units))
        with_loss += float(share) * sum(map(mask_sum, units)) / max(1, len(units))
        begin += size or 0
    first = [len(sample) for unit in train[:NUM_LENGTHS] for sample in unit.samples]
    num_rows = totals["num_units"]
    left_out = len(prepared.report["left_out"]) + len(prepared.report["bad_rows"])
    return DataTokens(
        mix=mix,
        tokens_per_unit=mean,
        error=0.0,
        lengths=tuple(first),
        population=tuple(len(sample) for unit in train for sample in unit.samples),
        longest=prepared.longest,
        limit=prepared.limit,
        num_rows=num_rows + left_out,
        num_left_out=left_out,
        num_eval_tokens=prepared.report["evaluation"]["num_tokens"],
        loss_share=with_loss / max(1.0, mean),
        how="all rows were tokenized",
        lines=tuple(prepared.lines),
    )


def _estimated(cfg: RunConfig, source: DataSource, tokenizer: "PreTrainedTokenizerBase | None", limit: int | None) -> _Estimate:
    """What a sample of a source says.

    Raises:
        DataError: a row of the sample can't be used and data.on_bad_row=error, or none of them can.
    """
    sampled = sample_rows(source, cfg.algo.seed)
    items = _encoded(cfg, source, tokenizer, limit, sampled.rows)
    block = cfg.data.block_size
    tokens = [sum(len(item.unit) if item.unit is not None else 0 for item in row) for row in items]
    if tokenizer is None:
        tokens = [sum(item.num_tokens for item in row) for row in items]
    units = [sum(1 for item in row if not item.bad and (item.unit is not None or tokenizer is None)) for row in items]
    lengths, weights = [], []
    for picked, row in zip(sampled.rows, items, strict=True):
        for item in row:
            each = [len(sample) for sample in item.unit.samples] if item.unit is not None else []
            each = [item.num_tokens] if tokenizer is None else each
            lengths += each
            weights += [picked.weight] * len(each)
    if not lengths:
        reason = next((item.reason for row in items for item in row if item.reason), "")
        raise DataError(f"{source.path}: none of {len(sampled.rows):,} sampled rows can be used. The first: {reason}")
    total, variance = _total(sampled, tokens)
    scale = _row_scale(sampled)
    num_units = scale * sum(picked.weight * count for picked, count in zip(sampled.rows, units, strict=True))
    lost = scale * sum(picked.weight for picked, count in zip(sampled.rows, units, strict=True) if not count)
    longest = max(lengths)
    if block is not None:
        num_units, lengths, weights, longest = max(1.0, total / block), [block], [1.0], block
    chosen = random.Random(cfg.algo.seed).choices(lengths, weights, k=NUM_LENGTHS)
    with_loss = [sum(mask_sum(item.unit) for item in row if item.unit is not None) for row in items]
    return _Estimate(
        num_rows=sampled.num_rows,
        units=num_units,
        tokens=total,
        variance=variance,
        longest=longest,
        left_out=lost,
        lengths=chosen,
        loss_share=1.0 if tokenizer is None else _total(sampled, with_loss)[0] / total,
        counted=sampled.counted,
        num_sampled=len(sampled.rows),
        in_order=sampled.in_order,
    )


def _encoded(
    cfg: RunConfig,
    source: DataSource,
    tokenizer: "PreTrainedTokenizerBase | None",
    limit: int | None,
    rows: Sequence[Picked],
) -> list[list[Item]]:
    if tokenizer is not None:
        return list(Encoder(tokenizer, cfg.data, source, limit).many(picked.entry for picked in rows))
    formats = FileFormats(source, cfg.data)
    items = []
    for picked in rows:
        try:
            if isinstance(picked.entry, Broken):
                raise picked.entry.error
            formats.example(picked.entry)
            read: Unread | Row = picked.entry
            num_bytes = sum(len(text.encode()) for text in texts_of(read.read().value))
            num_tokens = max(2, math.ceil(num_bytes / BYTES_PER_TOKEN))
            items.append([Item("", min(num_tokens, limit or num_tokens), None)])
        except DataError as error:
            if cfg.data.on_bad_row == "error":
                raise
            items.append([Item("", 0, None, str(error), bad=True)])
    return items


def _total(sampled: Sampled, values: Sequence[float]) -> tuple[float, float]:
    """The sum of a value over all rows of the source, and its variance (Hansen and Hurwitz)."""
    drawn = [picked.weight * value for picked, value in zip(sampled.rows, values, strict=True) if not picked.certain]
    certain = sum(value for picked, value in zip(sampled.rows, values, strict=True) if picked.certain)
    if len(drawn) < 2:
        return certain + sum(drawn), 0.0
    mean = sum(drawn) / len(drawn)
    variance = len(drawn) / (len(drawn) - 1) * sum((each - mean) ** 2 for each in drawn)
    is_all = sampled.counted and len(sampled.rows) >= sampled.num_rows
    return certain + sum(drawn), 0.0 if is_all else variance


def _row_scale(sampled: Sampled) -> float:
    """What makes the weights add up to the rows of the source, where these were counted."""
    weights = sum(picked.weight for picked in sampled.rows)
    return sampled.num_rows / weights if sampled.counted and weights else 1.0


def _together(
    cfg: RunConfig,
    sources: Sequence[DataSource],
    found: Sequence[_Estimate],
    evaluation: _Estimate | None,
    limit: int | None,
    guessed: bool,
) -> DataTokens:
    """The sources in the shares of the run's mix."""
    kept = [1 - num_held_out(max(2, round(each.num_rows)), cfg.data.eval_fraction) / max(2, each.num_rows) for each in found]
    sizes: list[int | None] = [max(1, round(each.units * share)) for each, share in zip(found, kept, strict=True)]
    if cfg.data.streaming:
        sizes = [source.num_rows for source in sources]
    mix = make_mix(sources, sizes)
    shares = [float(share) for share in mix.shares]
    means = [each.tokens / max(1.0, each.units) for each in found]
    mean = sum(share * each for share, each in zip(shares, means, strict=True))
    variance = sum(share**2 * each.variance / max(1.0, each.units) ** 2 for share, each in zip(shares, found, strict=True))
    error = math.sqrt(variance) / mean
    if any(each.in_order for each in found):
        error = max(error, ORDER_ERROR)
    counts = [round(share * NUM_LENGTHS) for share in shares]
    lengths = tuple(chain.from_iterable(each.lengths[:count] for each, count in zip(found, counts, strict=True)))
    held_out = sum(each.tokens * (1 - share) for each, share in zip(found, kept, strict=True))
    num_rows = sum(each.num_rows for each in found)
    about = "" if all(each.counted for each in found) else "about "
    num_sampled = sum(min(each.num_sampled, round(each.num_rows)) for each in found)  # a row may be drawn more than once
    how = f"a sample of {num_sampled:,} of {about}{round(num_rows):,} rows was tokenized"
    if any(each.in_order for each in found):
        how += ", from the first ones on: later rows may be unlike them"
    if guessed:
        how = f"no tokenizer is here: {BYTES_PER_TOKEN:g} bytes of text were taken for a token"
    return DataTokens(
        mix=mix,
        tokens_per_unit=mean,
        error=error,
        lengths=lengths,
        population=lengths,
        longest=_longest([*found, *filter(None, [evaluation])], limit, guessed),
        limit=limit,
        num_rows=round(num_rows),
        num_left_out=round(sum(each.left_out for each in found)),
        num_eval_tokens=round(evaluation.tokens if evaluation else held_out),
        loss_share=sum(s * m * each.loss_share for s, m, each in zip(shares, means, found, strict=True)) / mean,
        guessed=guessed,
        how=how,
    )


def _longest(found: Sequence[_Estimate], limit: int | None, guessed: bool) -> int:
    """Tokens of the longest sample. Of a guess the upper bound: what must fit into memory should not come as a surprise."""
    longest = max(each.longest for each in found)
    return min(math.ceil(longest * GUESSED[1]), limit or math.ceil(longest * GUESSED[1])) if guessed else longest
