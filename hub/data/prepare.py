"""The data of one run: rows read, checked, held out, encoded, measured. Imported by workers only.

Every rank does the same and gets the same: nothing here depends on anything but the config and the files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt

from hub.config import RunConfig
from hub.data.formats import Conversation, conversations
from hub.data.read import num_held_out, read_rows
from hub.data.template import encode, load_template, require_template, template_report
from hub.errors import ConfigError, DataError
from hub.options import AUTO

_MOST_LISTED = 1000
_MOST_PRINTED = 3


@dataclass(slots=True)
class Sample:
    """One conversation, ready to be trained on."""

    input_ids: npt.NDArray[np.int32]
    """Token ids, shape (length,)."""

    loss_mask: npt.NDArray[np.bool_]
    """True where the token is a target of the loss, shape (length,)."""

    where: str
    """`chats.jsonl:17`."""

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.input_ids)


@dataclass
class Prepared:
    """All samples of a run, and what became of the data."""

    train: list[Sample]
    evaluation: list[Sample]
    """Held-out samples; empty when none were asked for."""

    report: dict[str, Any]
    """Counts, and each row that was left out: for plan.json."""

    lines: list[str]
    """The same in short, to be printed."""


@dataclass
class _Part:
    """The training or the evaluation data."""

    samples: list[Sample]
    too_long: list[Sample]
    omitted: list[str]
    """Where the chat template leaves out a text that stands beside tool calls."""

    def counts(self) -> dict[str, int]:
        return {
            "num_rows": len(self.samples) + len(self.too_long),
            "num_samples": len(self.samples),
            "num_tokens": sum(map(len, self.samples)),
            "num_loss_tokens": sum(int(sample.loss_mask.sum()) for sample in self.samples),
            "longest": max(map(len, self.samples), default=0),
        }


def prepare(cfg: RunConfig, tokenizer: Any, max_positions: int | None) -> Prepared:
    """Read and encode the training and evaluation data of a run.

    Args:
        cfg: the run; `data`, `model.path` and `algo.seed` are read.
        tokenizer: a Hugging Face tokenizer. Its chat template becomes that of `data.template`, when set.
        max_positions: the longest sequence in tokens that the model can hold. None: any.

    Raises:
        ConfigError: `data.max_seq_len` is above `max_positions`.
        DataError: a row can't be used, or nothing is left to train or to evaluate on.
    """
    limit = _length_limit(cfg.data.max_seq_len, max_positions)
    if cfg.data.template:
        load_template(tokenizer, cfg.data.template)
    require_template(tokenizer, cfg.model.path)
    rows = list(conversations(read_rows(cfg.data.path), cfg.data.format))
    held_out: list[Conversation] = []
    if cfg.data.eval_path:
        held_out = list(conversations(read_rows(cfg.data.eval_path), cfg.data.format))
    elif cfg.data.eval_fraction:
        rows, held_out = _hold_out(rows, cfg.data.eval_fraction, cfg.algo.seed, cfg.data.path)
    train, evaluation = _encode_all(tokenizer, rows, limit), _encode_all(tokenizer, held_out, limit)
    for part, name in ((train, "train"), (evaluation, "evaluate")):
        if part.too_long and not part.samples:
            shortest = min(map(len, part.too_long))
            raise DataError(
                f"No row is left to {name} on: all {len(part.too_long)} are longer than {limit} tokens, the shortest "
                f"has {shortest}. {_longer(cfg.data.max_seq_len, shortest, max_positions)}"
            )
    template = template_report(tokenizer, train.samples)
    formats = sorted({row.format for row in rows + held_out})
    unused = sorted({name for row in rows + held_out for name in row.unused})
    left_out = train.too_long + evaluation.too_long
    omitted = train.omitted + evaluation.omitted
    report = {
        "path": cfg.data.path,
        "eval_path": cfg.data.eval_path,
        "formats": formats,
        "fields_not_used": unused,
        "max_seq_len": limit,
        "train": train.counts(),
        "evaluation": evaluation.counts(),
        "num_left_out": len(left_out),
        "left_out": [
            {"where": sample.where, "num_tokens": len(sample), "reason": f"longer than {limit} tokens"}
            for sample in left_out[:_MOST_LISTED]
        ],
        "num_rows_with_texts_omitted": len(omitted),
        "texts_omitted": omitted[:_MOST_LISTED],
        "template": template,
    }
    lines = [_summary(train, evaluation, formats)]
    if left_out:
        some = _some([sample.where for sample in left_out])
        lines.append(
            f"Left out: {len(left_out)} rows longer than {limit} tokens ({some}). "
            f"{_longer(cfg.data.max_seq_len, max(map(len, left_out)), max_positions)}"
        )
    if omitted:
        lines.append(f"In {len(omitted)} rows the chat template leaves out texts beside tool calls ({_some(omitted)}).")
    if unused:
        lines.append(f"Fields that are not used: {', '.join(unused[:12])}{', ...' if len(unused) > 12 else ''}")
    lines.append(template)
    return Prepared(train.samples, evaluation.samples, report, lines)


def _some(places: list[str]) -> str:
    return ", ".join(places[:_MOST_PRINTED]) + (", ..." if len(places) > _MOST_PRINTED else "")


def _length_limit(max_seq_len: int | str, max_positions: int | None) -> int | None:
    if max_seq_len == AUTO:
        return max_positions
    limit = int(max_seq_len)
    if max_positions is not None and limit > max_positions:
        raise ConfigError(
            f"data.max_seq_len={limit} is more than the {max_positions} tokens that the model can hold. "
            f"Type data.max_seq_len={max_positions} or less, or auto"
        )
    return limit


def _longer(max_seq_len: int | str, num_tokens: int, max_positions: int | None) -> str:
    """What to do about rows of up to `num_tokens` tokens that are too long."""
    if max_seq_len != AUTO and (max_positions is None or num_tokens <= max_positions):
        return f"To have them: data.max_seq_len={num_tokens}"
    if max_seq_len != AUTO and max_positions is not None and int(max_seq_len) < max_positions:
        return f"The model can hold up to {max_positions}: data.max_seq_len=auto"
    return "The model can hold no more: split them, or take a model with a longer context"


def _hold_out(rows: list[Conversation], fraction: float, seed: int, path: str) -> tuple[list[Conversation], list[Conversation]]:
    if len(rows) < 2:
        raise DataError(f"{path}: one row only, so none can be held out. Type data.eval_fraction=0, or give more rows")
    chosen = set(Random(seed).sample(range(len(rows)), num_held_out(len(rows), fraction)))
    return (
        [row for number, row in enumerate(rows) if number not in chosen],
        [row for number, row in enumerate(rows) if number in chosen],
    )


def _encode_all(tokenizer: Any, rows: Sequence[Conversation], limit: int | None) -> _Part:
    part = _Part([], [], [])
    for row in rows:
        encoded = encode(tokenizer, row)
        sample = Sample(np.asarray(encoded.input_ids, np.int32), np.asarray(encoded.loss_mask, np.bool_), row.where)
        if encoded.num_omitted:
            part.omitted.append(row.where)
        # The first token has nothing before it that could foretell it.
        if not sample.loss_mask[1:].any():
            raise DataError(
                f"{row.where}: nothing in this row is trained: the chat template leaves out what the assistant says. "
                "Take the row out, or type data.template=FILE.jinja"
            )
        (part.samples if limit is None or len(sample) <= limit else part.too_long).append(sample)
    return part


def _summary(train: _Part, evaluation: _Part, formats: list[str]) -> str:
    counts, held_out = train.counts(), evaluation.counts()
    share = counts["num_loss_tokens"] / counts["num_tokens"]
    text = (
        f"Data: {counts['num_samples']:,} samples ({', '.join(formats)}), {counts['num_tokens']:,} tokens, "
        f"{share:.0%} of them with loss, longest {counts['longest']:,}."
    )
    return text + (f" Evaluation: {held_out['num_samples']:,} samples held out." if held_out["num_samples"] else "")
