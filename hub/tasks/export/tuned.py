"""The model that is exported: what exports are compared with, its merged form, and rows of its training data."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from hub.config.option import AUTO
from hub.config.schema import ModelConfig
from hub.errors import HubError, Interrupted, ModelError, first_line
from hub.models import merging
from hub.models.fingerprint import changed_base
from hub.models.finished import Asked, Finished
from hub.models.load import load_config
from hub.models.merging.quantized import Kind
from hub.models.structure import base_of, max_positions
from hub.models.weights import local_weights
from hub.parallel.session import quiet_libraries
from hub.tasks.export.gate import Reference, keep, measure, sample_chats
from hub.tasks.export.job import Say
from hub.tasks.export.readers import ModelReader, fits_in_float32, free_memory
from hub.tasks.export.rows import rows_to_compare, training_rows
from hub.tasks.loading import Loaded, load_finished, tokenizer_of


@dataclass
class Tuned:
    """The model that is exported. Its weights are not in memory."""

    asked: Asked
    reference: Reference | None
    """What exports are compared with. None: they are not."""

    tokenizer: PreTrainedTokenizerBase
    base_path: Path
    notes: list[str]
    say: Say
    max_positions: int | None

    def merge(self, folder: Path) -> Path:
        """Write the model as one plain model into a folder, which is new or empty."""
        wanted, finished = self.asked.cfg.export, self.asked.model
        dtype = None if wanted.dtype == AUTO else getattr(torch, wanted.dtype)
        self.say("hub: merging the adapter into its base" if finished.adapter is not None else "hub: writing the model")
        if folder.exists():
            folder.rmdir()
        seen = self._quantized()
        merging.merge(self.base_path, finished.adapter, folder, dtype, self.say, model=finished.base, dequantized=seen)
        return folder

    def training_rows(self, count: int) -> list[list[int]]:
        """Token ids of so many rows of the training data. Empty: it is not known."""
        return training_rows(self.asked, self.tokenizer, self.max_positions, count)

    def _quantized(self) -> Kind | None:
        """How the base was stored while the adapter was trained on it, if the adapter is merged into these weights."""
        if self.asked.model.adapter is None or self.asked.cfg.export.merge_on == "full":
            return None
        algo = self.asked.cfg.algo
        if getattr(algo, "load_in_4bit", False):
            return "nf4"
        return "int8" if getattr(algo, "load_in_8bit", False) else None


@contextmanager
def open_tuned(asked: Asked, folder: Path, say: Say) -> Iterator[Tuned]:
    """Load the model, keep what exports are compared with, and let its weights go.

    Args:
        asked: what is exported.
        folder: for a file with log-probabilities.
        say: receives lines for the user.

    Raises:
        HubError: it can't be loaded, or its rows can't be read.
    """
    finished = asked.model
    quiet_libraries()
    notes: list[str] = []
    _check_base(asked, say, notes)
    if not asked.cfg.export.num_check_rows:
        path = local_weights(finished.base, say)
        notes.append("nothing was compared with the model that was trained (num_check_rows=0)")
        positions = max_positions(load_config(finished.base, path))
        yield Tuned(asked, None, tokenizer_of(asked.cfg, finished, path), path, notes, say, positions)
        return
    loaded = _load(asked, finished, say)
    rows, what = rows_to_compare(asked, loaded)
    chats = sample_chats(loaded.tokenizer)
    tokens = sum(len(row.positions) for row in rows)
    say(f"hub: computing its probabilities at {tokens:,} tokens of {len(rows)} {what}")
    reference = keep(ModelReader(loaded), rows, chats, folder, what, say)
    reference.arithmetic = str(loaded.dtype).removeprefix("torch.")
    tokenizer, base_path, positions = loaded.tokenizer, loaded.base_path, loaded.max_positions
    if loaded.has_adapter:
        say("hub: computing those of its base, to know how much training changed")
        with loaded.without_adapter():
            reference.kl_base = measure(reference, ModelReader(loaded), say)[0]
    del loaded
    free_memory()
    if finished.adapter is None and finished.before is not None:
        say("hub: loading the model that training began with, to know how much training changed")
        reference.kl_base = _change_of(asked, reference, finished.before, say, notes)
    if what != "held-out rows":
        notes.append(f"compared on {what}, since there is no evaluation set")
    if reference.kl_base is None:
        notes.append("the model that training began with is not known, so differences stand beside 0.05 nats per token")
    yield Tuned(asked, reference, tokenizer, base_path, notes, say, positions)


def _check_base(asked: Asked, say: Say, notes: list[str]) -> None:
    """Refuse an adapter whose base has changed since training.

    Raises:
        ModelError: it has, and this is not forced.
    """
    finished = asked.model
    if finished.adapter is None or not (line := changed_base(finished, local_weights(finished.base, say))):
        return
    if not asked.cfg.export.force:
        raise ModelError(f"{line}. Put it back as it was. To export the adapter on the new one, type --force")
    notes.append(line)


def _change_of(asked: Asked, reference: Reference, base: ModelConfig, say: Say, notes: list[str]) -> float | None:
    """KL(tuned || base) of a whole model. None: what it began with is gone or has changed."""
    try:
        path = local_weights(base, lambda line: None)
        if line := changed_base(asked.model, path):
            notes.append(line)
            return None
        before = _load(asked, Finished(name="before training", base=base), say)
    except Interrupted:
        raise
    except HubError as error:
        notes.append(f"the model that training began with can't be loaded: {first_line(error)}")
        return None
    change = measure(reference, ModelReader(before), say)[0]
    del before
    free_memory()
    return change


def _load(asked: Asked, finished: Finished, say: Say) -> Loaded:
    """Load a model for arithmetic in float32. Where its weights do not fit into memory in float32 they stay as they are.

    A quantized model computes as in training.
    """
    folders = [finished.folder] if finished.folder is not None else []
    if finished.adapter is not None or not folders:
        folders.append(local_weights(finished.base, lambda line: None))
    fits = fits_in_float32(*folders)
    loaded = load_finished(asked, finished, say, torch.float32 if fits else None)
    if fits or getattr(base_of(loaded.model), "is_quantized", False):
        return loaded
    return replace(loaded, dtype=torch.float32)
