"""The model that is exported: what exports are compared with, its merged form, and rows of its training data."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from hub.config.option import AUTO
from hub.config.schema import RunConfig
from hub.models import merging
from hub.models.finished import Asked, Finished
from hub.models.merging.quantized import Kind
from hub.models.weights import local_weights
from hub.system.memory import allowed_memory, free_host_memory
from hub.tasks.export.gate import Reference, keep, measure, sample_chats
from hub.tasks.export.job import Say
from hub.tasks.export.readers import ModelReader, free_memory
from hub.tasks.export.rows import rows_to_compare, training_rows
from hub.tasks.loading import device_here, load_finished

_FREE_SHARE = 0.85
"""Share of the free memory that a model in float32 may take."""


@dataclass
class Tuned:
    """The model that is exported. Its weights are not in memory."""

    asked: Asked
    reference: Reference
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
    dtype = arithmetic(finished, asked.cfg)
    loaded = load_finished(asked, finished, say, dtype)
    notes: list[str] = []
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
        before = load_finished(asked, Finished(name="before training", base=finished.before), say, dtype)
        reference.kl_base = measure(reference, ModelReader(before), say)[0]
        del before
        free_memory()
    if what != "held-out rows":
        notes.append(f"compared on {what}, since there is no evaluation set")
    if reference.kl_base is None:
        notes.append("the model that training began with is not known, so differences stand beside 0.02 nats per token")
    yield Tuned(asked, reference, tokenizer, base_path, notes, say, positions)


def arithmetic(finished: Finished, cfg: RunConfig) -> torch.dtype | None:
    """float32 if the model fits into memory in it, else None: that of `model.dtype`."""
    path = finished.folder or local_weights(finished.base, lambda line: None)
    files = [*path.glob("*.safetensors")]
    if finished.adapter is not None:
        files += [*local_weights(finished.base, lambda line: None).glob("*.safetensors")]
    device = device_here()
    free = free_host_memory() if device.type == "cpu" else allowed_memory(device)
    stored = sum(file.stat().st_size for file in files)
    return torch.float32 if 2 * stored < _FREE_SHARE * free else None
