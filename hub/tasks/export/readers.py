"""Readers of exports in the form of transformers: plain, and the loaded model that exports are compared with."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from hub.models.widened import is_narrow, widened
from hub.system.memory import allowed_memory, free_host_memory
from hub.tasks.generate.engine import shape_of
from hub.tasks.loading import Loaded, device_here

_NUM_LOGITS = 2**26
"""Logits that are computed at once: 256 MiB in float32."""

_MOST_TOKENS = 4096

_FREE_SHARE = 0.85
"""Share of the free memory that a model in float32 may take."""


class ModelReader:
    """A loaded model with its tokenizer."""

    def __init__(self, loaded: Loaded, name: str = "") -> None:
        self.name = name or f"transformers {transformers.__version__}"
        self.loaded = loaded
        self._widens = loaded.dtype == torch.float32 and is_narrow(loaded.model)

    @torch.no_grad()
    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """The logits behind each token: (tokens, vocabulary), float32, on the CPU."""
        logits: torch.Tensor = self._forward(ids).logits[0]
        return logits.float().cpu()

    @torch.no_grad()
    def logits_of(self, rows: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
        """The logits behind each token of rows, several at once: the weights of a large model are read once for all of them.

        Rows are padded behind their ends, which no earlier token sees.
        """
        for group in _groups(rows, _NUM_LOGITS // max(1, len(self.loaded.tokenizer))):
            longest = max(map(len, group))
            batch = torch.tensor([[*row, *[0] * (longest - len(row))] for row in group], device=self.loaded.device)
            logits = self._run(batch).logits
            for number, row in enumerate(group):
                yield logits[number, : len(row)].float().cpu()

    @torch.no_grad()
    def hidden(self, ids: Sequence[int]) -> list[torch.Tensor] | None:
        """The hidden states behind the embedding and behind each layer: (tokens, width) each."""
        states = getattr(self._forward(ids, output_hidden_states=True), "hidden_states", None)
        return None if not states else [state[0].float().cpu() for state in states]

    def tokens(self, text: str) -> list[int]:
        """Token ids of a rendered prompt: a template writes all special tokens itself."""
        return [int(number) for number in self.loaded.tokenizer(text, add_special_tokens=False)["input_ids"]]

    def differences(self) -> list[str]:
        """Nothing else."""
        return []

    @property
    def template(self) -> str | None:
        """The chat template."""
        template = self.loaded.tokenizer.chat_template
        return template if isinstance(template, str) else None

    @property
    def ends(self) -> frozenset[int]:
        """Ids of the tokens that end an answer."""
        return shape_of(self.loaded).stop_ids

    def _forward(self, ids: Sequence[int], **options: Any) -> Any:
        return self._run(torch.tensor([list(ids)], device=self.loaded.device), **options)

    def _run(self, batch: torch.Tensor, **options: Any) -> Any:
        with self.loaded.autocast(), widened(self.loaded.model) if self._widens else nullcontext():
            return self.loaded.model(input_ids=batch, use_cache=False, **options)


def _groups(rows: Sequence[Sequence[int]], num_tokens: int) -> Iterator[list[Sequence[int]]]:
    """Rows in their order, as many at once as have so many tokens when they are padded to the longest, and one at least."""
    group: list[Sequence[int]] = []
    for row in rows:
        if group and max(map(len, (*group, row))) * (len(group) + 1) > min(num_tokens, _MOST_TOKENS):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


@contextmanager
def open_folder(folder: Path, trust_remote_code: bool = False, dtype: torch.dtype = torch.float32) -> Iterator[ModelReader]:
    """Open a model folder with plain transformers, as anyone would who knows nothing of the hub.

    Args:
        folder: of the model.
        trust_remote_code: whether its own code may run.
        dtype: of the arithmetic. In float32 a model that does not fit into memory so is widened layer by layer.
    """
    device = device_here()
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype if dtype != torch.float32 or fits_in_float32(folder) else "auto",
        trust_remote_code=trust_remote_code,
        local_files_only=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    model = model.to(device).eval().requires_grad_(False)
    loaded = Loaded(folder.name, model, tokenizer, device, dtype, None, folder)
    try:
        yield ModelReader(loaded)
    finally:
        del model, loaded
        free_memory()


def fits_in_float32(*folders: Path) -> bool:
    """Whether the weights of some folders fit into the free memory in float32. They are taken to be stored in 16 bits."""
    device = device_here()
    free = free_host_memory() if device.type == "cpu" else allowed_memory(device)
    stored = sum(file.stat().st_size for folder in folders for file in folder.glob("*.safetensors"))
    return 2 * stored < _FREE_SHARE * free


def free_memory() -> None:
    """Give back the memory of a model that was let go."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
