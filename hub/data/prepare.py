"""The data of one run: rows read, checked, held out, encoded, measured. Imported by workers only.

Every rank does the same and gets the same: nothing here depends on anything but the config and the files.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from hub.config.option import AUTO
from hub.config.schema import RunConfig
from hub.data.samples.counts import Part
from hub.data.samples.mix import Mix, eval_source_of, make_mix, num_held_out, sources_of
from hub.data.samples.sample import Item, Sample
from hub.data.token_cache import encoded_rows, is_large, keep
from hub.data.tokens.template import fallback_line, load_template, require_template, template_report
from hub.errors import ConfigError, DataError

__all__ = ["Prepared", "Sample", "length_limit", "prepare"]

FIRST_ROWS = 256
"""Rows of each source of a stream that are looked at before training."""

MOST_REPEATED = 0.01
"""Share of samples that repeat another one above which that is said before training."""

_NOT_RENDERED = {"document", "tokens"}


@dataclass
class Prepared:
    """All samples of a run, and what became of the data."""

    train: list[Sample]
    """The sources of `mix` one after the other. Of a stream: its first samples, to look at only."""

    evaluation: list[Sample]
    """Held-out samples; empty when none were asked for."""

    mix: Mix
    """What each source gives to the run."""

    limit: int | None
    """Longest sample in tokens."""

    report: dict[str, Any]
    """Counts, and each row that was left out: for plan.json."""

    lines: list[str]
    """The same in short, to be printed."""

    @property
    def longest(self) -> int:
        """Tokens of the longest sample that is in memory."""
        return max(map(len, [*self.train, *self.evaluation]))


def prepare(
    cfg: RunConfig,
    tokenizer: Any,
    max_positions: int | None,
    base_path: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Prepared:
    """Read and encode the training and evaluation data of a run; of a stream only the first rows.

    Args:
        cfg: the run; `data`, `algo.seed` and, for a stream, `algo.max_tokens_per_gpu` are read.
        tokenizer: a Hugging Face tokenizer. Its chat template becomes that of `data.template`, when set; one without any
            gets one.
        max_positions: the longest sequence in tokens that the model can hold. None: any.
        base_path: local folder with the same tokenizer: then large sources are encoded by several processes, and kept.
        say: takes a line when something takes a while.

    Raises:
        ConfigError: `data.max_seq_len` or `data.block_size` is above `max_positions`.
        DataError: a row can't be used, or nothing is left to train or to evaluate on.
    """
    limit = length_limit(cfg, max_positions)
    if cfg.data.template:
        load_template(tokenizer, cfg.data.template)
    has_template = bool(tokenizer.chat_template)
    sources = sources_of(cfg.data)
    trained: list[Part] = []
    held_out: list[Part] = []
    for source in sources:
        most = FIRST_ROWS if cfg.data.streaming else None
        rows = encoded_rows(cfg, source, tokenizer, limit, base_path, say, most)
        if cfg.data.eval_fraction:
            rows, out = _hold_out(rows, cfg.data.eval_fraction, cfg.algo.seed, source.path)
            held_out.append(Part.of(out, cfg.data.block_size))
        trained.append(Part.of(rows, cfg.data.block_size))
    if evaluation_source := eval_source_of(cfg.data):
        rows = encoded_rows(cfg, evaluation_source, tokenizer, limit, base_path, say)
        held_out.append(Part.of(rows, cfg.data.block_size))
    train, evaluation = Part.together(trained), Part.together(held_out)
    whole = Part.together([train, evaluation])
    for part, source in zip(trained, sources, strict=True):
        _require_samples(part, "train on", source.path, cfg, max_positions, limit)
    if held_out:
        _require_samples(evaluation, "evaluate on", cfg.data.eval_path or "", cfg, max_positions, limit)
    if cfg.data.block_size is not None and "document" not in whole.formats:
        raise ConfigError(
            f"data.block_size={cfg.data.block_size} joins raw documents, but these rows are "
            f"{', '.join(sorted(whole.formats))}. Leave block_size out, or name the column: data.text_column=NAME"
        )
    sizes = [
        source.num_rows if cfg.data.streaming else len(part.samples) for part, source in zip(trained, sources, strict=True)
    ]
    mix = make_mix(sources, sizes)
    rendered = whole.formats - _NOT_RENDERED
    if rendered:
        require_template(tokenizer)  # other processes may have done the rendering
    template = template_report(tokenizer, train.uncut(), cfg.data.loss_on) if rendered else "Loss is on every token."
    formats = sorted(whole.formats)
    report = {
        "path": cfg.data.path or None,
        "eval_path": cfg.data.eval_path,
        "streaming": cfg.data.streaming,
        "formats": formats,
        "fields_not_used": sorted(whole.unused),
        "max_seq_len": limit,
        "train": train.counts(),
        "evaluation": evaluation.counts(),
        **whole.losses(),
        "template": template,
    }
    if len(sources) > 1:
        report["sources"] = [
            {
                "name": name,
                "path": source.path,
                "share": float(share),
                "formats": sorted(part.formats),
                **part.counts(),
                **{key: value for key, value in part.losses().items() if isinstance(value, int)},
            }
            for name, source, share, part in zip(mix.names, sources, mix.shares, trained, strict=True)
        ]
    lines = [_summary(cfg, train, evaluation, formats)]
    longest = max((item.num_tokens for item in whole.left_out), default=0)
    lines += whole.lines(limit, _longer(cfg.data.max_seq_len, longest, max_positions))
    if rendered and not has_template:
        lines.append(fallback_line(tokenizer))
    repeated, leaked = _repetitions(train.samples, evaluation.samples)
    report |= {"num_samples_repeated": len(repeated), "num_held_out_samples_in_training_data": len(leaked)}
    lines += [*_repetition_lines(repeated, leaked, len(train.samples), len(evaluation.samples)), template]
    return Prepared(train.samples, evaluation.samples, mix, limit, report, lines)


def keep_large(cfg: RunConfig, tokenizer: Any, max_positions: int | None, base_path: Path, say: Callable[[str], None]) -> None:
    """Encode the large sources of a run, so that `prepare` finds them in every process of this machine."""
    limit = length_limit(cfg, max_positions)
    sources = [] if cfg.data.streaming else sources_of(cfg.data)
    for source in [*sources, *filter(None, [eval_source_of(cfg.data)])]:
        if is_large(source):
            keep(cfg, source, tokenizer, limit, base_path, say)


def _repetitions(train: Sequence[Sample], evaluation: Sequence[Sample]) -> tuple[list[str], list[str]]:
    """Training samples that repeat an earlier one, and held-out samples that stand in the training data, token by token."""
    seen: set[bytes] = set()
    repeated = []
    for sample in train:
        digest = _digest(sample)
        if digest in seen:
            repeated.append(sample.where)
        seen.add(digest)
    return repeated, [sample.where for sample in evaluation if _digest(sample) in seen]


def _digest(sample: Sample) -> bytes:
    return hashlib.blake2b(sample.input_ids.tobytes(), digest_size=16).digest()


def _repetition_lines(repeated: list[str], leaked: list[str], num_train: int, num_held_out: int) -> list[str]:
    lines = []
    look = "python -m hub data with the same options shows more"
    if len(repeated) > MOST_REPEATED * num_train:
        lines.append(
            f"Note: {len(repeated):,} of {num_train:,} samples repeat another one word by word ({repeated[0]}, ...); {look}."
        )
    if leaked:
        lines.append(
            f"Warning: {len(leaked):,} of {num_held_out:,} held-out samples stand in the training data, too ({leaked[0]}, "
            f"...), so the held-out loss will look better than it is; {look}."
        )
    return lines


def _require_samples(part: Part, verb: str, path: str, cfg: RunConfig, max_positions: int | None, limit: int | None) -> None:
    if part.samples:
        return
    of = f" of {path}" if path else ""
    if part.left_out:
        shortest = min(item.num_tokens for item in part.left_out)
        raise DataError(
            f"No row{of} is left to {verb}: all {len(part.left_out)} are longer than {limit} tokens, the shortest "
            f"has {shortest}. {_longer(cfg.data.max_seq_len, shortest, max_positions)}"
        )
    first = f" The first: {part.bad[0].reason}" if part.bad else ""
    raise DataError(f"No row{of} is left to {verb}: {len(part.bad)} bad rows are left out.{first}")


def length_limit(cfg: RunConfig, max_positions: int | None) -> int | None:
    """Tokens of the longest sample that is trained on. None: any.

    Raises:
        ConfigError: `data.max_seq_len` or `data.block_size` is above `max_positions`.
    """
    block = cfg.data.block_size
    if block is not None and max_positions is not None and block > max_positions:
        raise ConfigError(
            f"data.block_size={block} is more than the {max_positions} tokens that the model can hold. "
            f"Type data.block_size={max_positions} or less"
        )
    bound = cfg.algo.max_tokens_per_gpu
    if cfg.data.max_seq_len == AUTO:
        if cfg.data.streaming and bound != AUTO:
            # Nobody knows the longest sample of a stream, and one above the bound would end the run days later.
            return min(int(bound), max_positions or int(bound))
        return max_positions
    limit = int(cfg.data.max_seq_len)
    if max_positions is not None and limit > max_positions:
        raise ConfigError(
            f"data.max_seq_len={limit} is more than the {max_positions} tokens that the model can hold. "
            f"Type data.max_seq_len={max_positions} or less, or auto"
        )
    if cfg.data.streaming and bound != AUTO and int(bound) < limit:
        raise ConfigError(
            f"algo.max_tokens_per_gpu={bound} is below data.max_seq_len={limit}, so a sample of the stream may not fit. "
            f"Type algo.max_tokens_per_gpu={limit}, or data.max_seq_len={bound} to leave longer samples out"
        )
    return limit


def _longer(max_seq_len: int | str, num_tokens: int, max_positions: int | None) -> str:
    """What to do about rows of up to `num_tokens` tokens that are too long."""
    if max_seq_len != AUTO and (max_positions is None or num_tokens <= max_positions):
        return f"To have them: data.max_seq_len={num_tokens}"
    if max_seq_len != AUTO and max_positions is not None and int(max_seq_len) < max_positions:
        return f"The model can hold up to {max_positions}: data.max_seq_len=auto"
    return "The model can hold no more: data.on_long=split or truncate, or take a model with a longer context"


def _hold_out(rows: Sequence[list[Item]], fraction: float, seed: int, path: str) -> tuple[list[list[Item]], list[list[Item]]]:
    """The rows to train on, bad ones included, and those to evaluate on."""
    good = [number for number, items in enumerate(rows) if not items[0].bad]
    if len(good) < 2:
        raise DataError(f"{path}: one row only, so none can be held out. Type data.eval_fraction=0, or give more rows")
    chosen = {good[place] for place in Random(seed).sample(range(len(good)), num_held_out(len(good), fraction))}
    return (
        [items for number, items in enumerate(rows) if number not in chosen],
        [items for number, items in enumerate(rows) if number in chosen],
    )


def _summary(cfg: RunConfig, train: Part, evaluation: Part, formats: Sequence[str]) -> str:
    counts, held_out = train.counts(), evaluation.counts()
    share = counts["num_loss_tokens"] / counts["num_tokens"]
    begin = "a stream, of which the first " if cfg.data.streaming else ""
    verb = " are" if cfg.data.streaming else ""
    text = (
        f"Data: {begin}{counts['num_samples']:,} samples ({', '.join(formats)}){verb}{'' if verb else ','} "
        f"{counts['num_tokens']:,} tokens, {share:.0%} of them with loss, longest {counts['longest']:,}."
    )
    if train.num_joined:
        text += f" They are {train.num_joined:,} documents, joined and cut to {cfg.data.block_size} tokens."
    return text + (f" Evaluation: {held_out['num_samples']:,} samples held out." if held_out["num_samples"] else "")
