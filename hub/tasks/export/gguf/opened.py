"""A GGUF file for the check: what llama.cpp computes, how it reads prompts, where it ends answers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hub.tasks.export.gguf import check
from hub.tasks.export.gguf.reader import GgufReader, open_reader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class OpenedFile:
    """A GGUF file that was loaded by llama.cpp, or by transformers where llama.cpp is not installed."""

    def __init__(self, reader: GgufReader, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.name = reader.by
        self._reader, self._tokenizer = reader, tokenizer

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """The logits behind each token: (tokens, vocabulary), float32, on the CPU."""
        return self._reader.logits(list(ids))

    def hidden(self, ids: Sequence[int]) -> None:
        """llama.cpp does not show them."""

    def tokens(self, text: str) -> list[int] | None:
        """Token ids of a rendered prompt, as llama.cpp's server makes them: what the file asks for, and nothing twice."""
        reader = self._reader
        if not reader.is_llama_cpp:
            return None
        begin, end = self._tokenizer.bos_token, self._tokenizer.eos_token
        if reader.facts.adds_bos and begin:
            text = text.removeprefix(begin)
        if reader.facts.adds_eos and end:
            text = text.removesuffix(end)
        return reader.tokenize(text, add_special=True)

    def differences(self) -> list[str]:
        """What the file says otherwise than the tokenizer on plain texts and on its vocabulary."""
        return check.differences(self._reader, self._tokenizer)

    @property
    def template(self) -> str | None:
        """The chat template in the file."""
        return self._reader.facts.template

    @property
    def ends(self) -> frozenset[int]:
        """Ids of the tokens that end an answer."""
        return self._reader.facts.ends


@contextmanager
def open_file(file: Path, tokenizer: "PreTrainedTokenizerBase") -> Iterator[OpenedFile]:
    """Load a GGUF file.

    Args:
        file: the file.
        tokenizer: of the model that was trained.

    Raises:
        ModelError: it can't be loaded.
    """
    with open_reader(file) as reader:
        yield OpenedFile(reader, tokenizer)
