"""The rows that an export needs: held-out ones to be compared on, those of the training data to be calibrated on."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from hub.config.schema import RunConfig
from hub.data.samples.sample import Sample
from hub.models.finished import Asked
from hub.tasks.evaluate.evaluate import held_out_config
from hub.tasks.evaluate.sets import LEARNT, Encoding, make_set, retention_config
from hub.tasks.export.gate import Row
from hub.tasks.loading import Loaded

_LONGEST = 512
"""Tokens of a row that are read, if any of them is trained. llama.cpp reads a large model slowly on a CPU."""


def rows_to_compare(asked: Asked, loaded: Loaded) -> tuple[list[Row], str]:
    """The rows on which exports are compared, and what they are.

    Held-out rows, else rows of the training data, else general text that ships with the hub.
    """
    cfg = asked.cfg
    wanted = cfg.export
    encoding = Encoding(loaded.tokenizer, loaded.max_positions, _folder(loaded), _quiet)
    held_out, what = held_out_config(asked), "held-out rows"
    if held_out is None and _names_data(cfg):
        held_out, what = _whole(cfg), "rows of the training data"
    if held_out is None:
        held_out, what = retention_config(cfg, "auto", loaded.max_positions), "rows of general text"
    found = make_set("held-out", LEARNT, held_out, encoding, wanted.num_check_rows, False)
    return spread(found.samples, wanted.num_check_tokens), what


def training_rows(asked: Asked, tokenizer: PreTrainedTokenizerBase, max_positions: int | None, count: int) -> list[list[int]]:
    """Token ids of the first rows of the training data. Empty: it is not known."""
    if not _names_data(asked.cfg):
        return []
    found = make_set("training", LEARNT, _whole(asked.cfg), Encoding(tokenizer, max_positions, None, _quiet), count, False)
    return [sample.input_ids.tolist() for sample in found.samples]


def spread(samples: Sequence[Sample], num_tokens: int) -> list[Row]:
    """Choose positions whose next word is trained, evenly over samples, at most so many."""
    rows = []
    each = max(1, num_tokens // max(1, len(samples)))
    for sample in samples:
        trained = [place - 1 for place in sample.loss_mask.nonzero()[0].tolist() if place > 0]
        if not trained:
            continue
        trained = [place for place in trained if place < _LONGEST] or trained
        chosen = trained[:: max(1, -(-len(trained) // each))]
        rows.append(Row(tuple(sample.input_ids[: chosen[-1] + 1].tolist()), tuple(chosen)))
    return rows


def _quiet(line: str) -> None:
    """Nothing: training has said it."""


def _whole(cfg: RunConfig) -> RunConfig:
    data = replace(cfg.data, eval_path=None, eval_fraction=0.0, streaming=False)
    return replace(cfg, data=data)


def _names_data(cfg: RunConfig) -> bool:
    return bool(cfg.data.path or cfg.data.mix)


def _folder(loaded: Loaded) -> Path | None:
    return loaded.base_path if not loaded.has_adapter else None
