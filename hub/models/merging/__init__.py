"""A stored adapter merged into stored base weights, and a whole model written in another dtype: one tensor in memory at a time.

Each weight is summed in float32 and rounded once. Tensors have the names and the layout of the base's files.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hub.config.schema import ModelConfig
from hub.errors import ConfigError, HubError, ModelError
from hub.models import load
from hub.models.averaging import appears_whole
from hub.models.loading_report import without_data
from hub.models.merging.beside import Edits, left_out, num_bytes, write_beside
from hub.models.merging.changes import UnknownAdapterError, changes_of, is_loftq
from hub.models.merging.loaded import merge_loaded
from hub.models.merging.names import StoredNames, UnknownNamesError
from hub.models.merging.quantized import Kind, quantized_layers
from hub.models.merging.shards import check_room, write_shards
from hub.models.merging.stored import StoredWeights
from hub.models.merging.work import Work, dtypes_of, plan_work
from hub.models.safety import read_json
from hub.models.tokens import Vocabulary, resize_embeddings, vocabulary_of
from hub.system.waiting import counted

Say = Callable[[str], None]


@dataclass(frozen=True)
class Merged:
    """A merged model."""

    path: Path
    dtype: torch.dtype
    """That of most of its tensors."""

    num_tensors: int
    num_changed: int
    """Tensors that have other numbers than the base after rounding. For a whole model 0."""

    num_rounded_away: int = 0
    """Tensors that the adapter changes by so little that rounding to `dtype` gives the base's numbers again."""

    by_shard: bool = True
    """Whether one tensor at a time was in memory. Else the model was loaded as a whole."""


def merge(
    base: Path,
    adapter: Path | None,
    out: Path,
    dtype: torch.dtype | None,
    say: Say,
    *,
    model: ModelConfig,
    dequantized: Kind | None = None,
) -> Merged:
    """Write a model with its adapter merged into its weights, or a whole model in another dtype.

    Args:
        base: local folder of the base, or of the whole model.
        adapter: folder of the adapter. None: the model is whole.
        out: folder of the result, which appears whole or not at all. An older one is replaced.
        dtype: of the stored weights, but of those that transformers keeps in float32. None: of each tensor as in the base.
        say: receives lines for the user.
        model: options of the base: new tokens, `trust_remote_code`, `dtype` of training.
        dequantized: merge over the weights of the base as they were quantized in training (`algo.load_in_4bit`: nf4,
            `algo.load_in_8bit`: int8), and not over those of its files.

    Raises:
        ModelError: something does not fit, or a value does not fit into the dtype. Nothing is written.
        ConfigError: there is not enough space, or the folder can't be written.
    """
    place = out.resolve()
    for folder in (base, adapter):
        if folder is not None and (folder.resolve() == place or folder.resolve().is_relative_to(place)):
            raise ConfigError(f"{out} has what is merged, and would be replaced. Type out=FOLDER, another one")
    stored = StoredWeights(base, model)
    if stored.is_quantized:
        dequantized = None  # there are no other weights
    elif adapter is not None and dequantized is None and is_loftq(adapter):
        say("the adapter belongs onto the weights in 4 bits (LoftQ), so it is merged over these")
        dequantized = "nf4"
    for name in left_out(base):
        say(f"{name} of the base is no part of the merged model: it is larger than any file of a tokenizer")
    try:
        work, edits = _planned(stored, base, adapter, dtype, model, dequantized)
    except (UnknownNamesError, UnknownAdapterError) as error:
        if adapter is None or dequantized is not None or stored.is_quantized:
            raise ModelError(f"model.path={model.path}: it can't be written tensor by tensor ({error})") from None
        say(f"the whole model is loaded in float32 to merge its adapter, 4 bytes of memory for each weight: {error}")
        with appears_whole(out) as aside:
            counts = merge_loaded(base, adapter, aside, dtype or stored.dtype, model)
            write_beside(aside, base, adapter, model, _edits_of_loaded(aside, base, dtype or stored.dtype))
        return Merged(out, dtype or stored.dtype, *counts, by_shard=False)
    check_room(work.plan, num_bytes(base, adapter), out.absolute().parent)
    with appears_whole(out) as aside:
        aside.mkdir(parents=True)
        write_shards(aside, work.plan, counted(work.tensors(), len(work.plan), "merging: {} tensors", say))
        write_beside(aside, base, adapter, model, edits)
    if work.num_rounded_away:
        say(
            f"{work.num_rounded_away} of {work.num_changed + work.num_rounded_away} merged tensors are those of the base again "
            f"in {_name(edits.dtype)}: training changed them by less than its rounding. Type dtype=float32 to keep the change"
        )
    return Merged(out, edits.dtype, len(work.plan), work.num_changed, work.num_rounded_away)


def _planned(
    stored: StoredWeights,
    base: Path,
    adapter: Path | None,
    dtype: torch.dtype | None,
    cfg: ModelConfig,
    dequantized: Kind | None,
) -> tuple[Work, Edits]:
    """What is done to each tensor. Only headers and the adapter are read."""
    config = load.load_config(cfg, base)
    try:
        plain = without_data(config, stored.tensors)
    except HubError:
        raise  # the signal that ends the run
    except Exception as error:  # such as code of its own
        if adapter is None:
            return plan_work(stored, None, {}, None, dtypes_of(None, stored, dtype), None), Edits(dtype or stored.dtype)
        raise UnknownNamesError(f"transformers can't build the model without its data ({error})") from None
    vocabulary = _vocabulary(base, adapter, cfg)
    if vocabulary is not None:
        resize_embeddings(plain, vocabulary, cfg)
    names = StoredNames(plain, stored.tensors)
    quantized = quantized_layers(plain, dequantized) if dequantized else frozenset()
    dtypes = dtypes_of(plain, stored, dtype, names)
    changes = changes_of(adapter, plain) if adapter is not None else {}
    rows = (vocabulary, cfg.new_token_init) if vocabulary is not None else None
    seen = (dequantized, quantized, _compute_dtype(cfg)) if dequantized else None
    work = plan_work(stored, names, changes, rows, dtypes, seen)
    num_rows = (vocabulary.num_stored, vocabulary.num_rows) if vocabulary is not None else None
    return work, Edits(dtype or stored.dtype, num_rows, work.is_untied)


def _edits_of_loaded(folder: Path, base: Path, dtype: torch.dtype) -> Edits:
    """What a config that transformers saved has other than that of the base."""
    ours, stored = read_json(folder / "config.json", str(folder)), read_json(base / "config.json", str(base))
    rows = [_text(values).get("vocab_size") or values.get("vocab_size") for values in (stored, ours)]
    grown = (rows[0], rows[1]) if rows[0] and rows[1] and rows[0] != rows[1] else None
    return Edits(dtype, grown, ours.get("tie_word_embeddings") is False and stored.get("tie_word_embeddings") is not False)


def _text(config: dict[str, Any]) -> dict[str, Any]:
    text = config.get("text_config")
    return text if isinstance(text, dict) else config


def _vocabulary(base: Path, adapter: Path | None, cfg: ModelConfig) -> Vocabulary | None:
    if adapter is None or not cfg.changes_vocab:
        return None
    return vocabulary_of(cfg, base, load.load_tokenizer(cfg, adapter))


def _compute_dtype(cfg: ModelConfig) -> torch.dtype:
    return torch.float32 if cfg.dtype == "float32" else torch.bfloat16


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
