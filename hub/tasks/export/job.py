"""What an exporter gets, and what it returns."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from hub.config.export import ExportConfig
from hub.models.finished import Asked, Finished

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

Say = Callable[[str], None]

LIMIT = 0.01
"""Largest divergence of an export that should be the model itself, as a share of what training changed."""


class Reader(Protocol):
    """An export as the program reads it that it is for."""

    name: str
    """What reads it, with its version: `transformers 5.23.0`, `llama.cpp b10605`."""

    def logits(self, ids: Sequence[int]) -> "torch.Tensor":
        """The logits behind each token of a text: (tokens, vocabulary), float32, on the CPU."""
        ...

    def hidden(self, ids: Sequence[int]) -> "list[torch.Tensor] | None":
        """The hidden states behind the embedding and behind each layer: (tokens, width) each. None: they can't be seen."""
        ...

    def tokens(self, text: str) -> list[int] | None:
        """Token ids of a rendered prompt, with all that the program adds by itself. None: it does not tokenize."""
        ...

    def differences(self) -> list[str]:
        """What else the program finds otherwise than in training, a line each."""
        ...

    @property
    def template(self) -> str | None:
        """The chat template that the program finds in the export. None: it has none."""
        ...

    @property
    def ends(self) -> frozenset[int]:
        """Ids of the tokens that end an answer."""
        ...


@runtime_checkable
class ReaderOfSeveral(Protocol):
    """A reader that is quicker for several texts at once."""

    def logits_of(self, rows: Sequence[Sequence[int]]) -> "Iterator[torch.Tensor]":
        """The logits of each text, as `Reader.logits` gives them."""
        ...


@dataclass(frozen=True, kw_only=True)
class Written:
    """One thing that an exporter wrote, and how it is read again."""

    kind: str
    """What it is, for tables: `merged`, `q4_k_m`, `w4a16`."""

    path: Path
    """The file or folder, within the folder of the job."""

    open: Callable[[], AbstractContextManager[Reader]] | None = None
    """Opens it as its program does. None: there is nothing to compare, and `note` says why."""

    limit: float = LIMIT
    """Largest KL(tuned || export) / KL(tuned || base) that passes."""

    limit_nats: float | None = None
    """For weights of fewer bits: the largest KL(tuned || export) in nats per token that passes, in place of `limit`."""

    rounding: Callable[[], float] | None = None
    """If its program computes in fewer bits than the reference: what that costs the right model, as KL in nats per token. An
    export farther away than `limit`, but no farther than this, passes. It is asked only then."""

    explain: Callable[[], str | None] | None = None
    """Says what differs first, if the check fails: one line, or None."""

    failed: str = ""
    """What is wrong with it, found by the exporter itself and kept by `--force`: one line."""

    figure: str = ""
    """How wrong that is, for its name: `3-chats`."""

    note: str = ""
    """A line for the user."""

    made_by: Mapping[str, str] = field(default_factory=dict)
    """Programs and libraries that made it, with their versions."""


@dataclass(frozen=True, kw_only=True)
class Delivered:
    """One thing that was written, checked and put in its place."""

    exporter: str
    kind: str
    path: Path
    num_bytes: int
    seconds: float
    check: dict[str, Any] | None = None
    """What the comparison found: `kl`, `kl_base`, `ratio`, `limit`, `reader`, `passed`, `differs`. None: not compared."""

    failed: str = ""
    """What its exporter found wrong with it, and was told to keep."""

    note: str = ""
    made_by: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return not self.failed and (self.check is None or bool(self.check["passed"]))


@dataclass(frozen=True, kw_only=True)
class Job:
    """What an exporter gets."""

    asked: Asked
    """Config and model as they were asked for."""

    out: Path
    """An empty folder to write to. What is in it gets to `final` when it is whole and has passed its check."""

    final: Path
    """Where the files will be. They may name each other by relative paths only."""

    merged: Callable[[], Path]
    """Folder with the model as one plain model of transformers, tokenizer and all. It is made at the first call."""

    settings: Callable[[], Path]
    """Folder with the config, generation config and tokenizer of that model. Its weights may be gone."""

    let_go: Callable[[], None]
    """Says that this exporter reads the weights of `merged` no more. If no other one does, they are removed from the disk."""

    rows: Callable[[int], list[list[int]]]
    """Token ids of so many rows of the training data, as in training. Empty: the training data is not known."""

    tokenizer: "PreTrainedTokenizerBase"
    """Of the model, with the template that it was trained with."""

    done: Mapping[str, Sequence[Delivered]]
    """What exporters before this one wrote."""

    say: Say
    """Receives lines for the user."""

    check: Callable[[Written], dict[str, Any] | None] = lambda written: None
    """Compares something that is not delivered, such as a step on the way. Raises ModelError if it is not the model."""

    look: Callable[[Written], dict[str, Any] | None] = lambda written: None
    """Compares something that is not delivered, and returns what it found, without an error."""

    tiny: bool = False
    """Whether this is the trial before training: a model cut to a few layers. Nothing may leave this machine."""

    @property
    def cfg(self) -> ExportConfig:
        return self.asked.cfg.export

    @property
    def finished(self) -> Finished:
        return self.asked.model
