"""The rows that an export needs: held-out ones to be compared on, those of the training data to be calibrated on."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from hub.config.schema import RunConfig
from hub.data.prepare import prepare
from hub.data.samples.sample import Sample, Unit
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
    units: Sequence[Unit] | None = None
    if held_out is None and _names_data(cfg):
        held_out, units, what = cfg, _trained(cfg, encoding), "rows of the training data"
    if held_out is None:
        held_out, what = retention_config(cfg, "auto", loaded.max_positions), "rows of general text"
    found = make_set("held-out", LEARNT, held_out, encoding, wanted.num_check_rows, False, units)
    return spread(found.samples, wanted.num_check_tokens), what


def training_rows(asked: Asked, tokenizer: PreTrainedTokenizerBase, max_positions: int | None, count: int) -> list[list[int]]:
    """Token ids of the first rows that were trained on: none of the evaluation set. Empty: they are not known."""
    cfg = asked.cfg
    if not _names_data(cfg):
        return []
    encoding = Encoding(tokenizer, max_positions, None, _quiet)
    found = make_set("training", LEARNT, cfg, encoding, count, False, _trained(cfg, encoding))
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


def _trained(cfg: RunConfig, encoding: Encoding) -> Sequence[Unit]:
    """The rows that a run trains on, of a stream the first ones."""
    cfg = replace(cfg, data=replace(cfg.data, eval_path=None))
    units: Sequence[Unit] = prepare(cfg, encoding.tokenizer, encoding.max_positions, encoding.base_path, encoding.say).train
    return units


def _names_data(cfg: RunConfig) -> bool:
    return bool(cfg.data.path or cfg.data.mix)


def _folder(loaded: Loaded) -> Path | None:
    return loaded.base_path if not loaded.has_adapter else None
