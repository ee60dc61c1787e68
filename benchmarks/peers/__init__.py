"""The contenders of `python -m benchmarks`: the hub and its peers, each in a separate file.

A file has two parts. The first runs in the parent process and imports only the standard library: what the peer needs, which
workloads it can't run, the command that starts it, and how its steps are read. The second runs in a separate process and
environment (`python -m benchmarks.peers.NAME FOLDER`), reads `task.json` in that folder and trains. It can't import the hub.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LORA_RANK, LORA_ALPHA = 16, 32
LEARNING_RATE = {"full": 1e-5, "lora": 2e-4, "qlora": 2e-4, "osft": 1e-5}


@dataclass(frozen=True, kw_only=True)
class Task:
    """A workload as its process reads it from `task.json`. All contenders have the same model, rows and number of steps."""

    contender: str
    """Name of the contender. Some libraries have two, with different settings."""

    kind: str
    """full, lora, qlora, or osft, which the hub alone has."""

    model: str
    """Folder of the model."""

    rows: str
    """JSONL file with `input_ids` and `labels`."""

    steps: int
    batch: int
    """Samples per step over all processes."""

    longest: int
    """Tokens of the longest row, and of a row that several are packed into."""

    mean: float
    """Mean number of tokens of a row."""

    packed: bool
    """Whether several rows are packed into one."""

    micro_rows: int
    """Rows of `longest` tokens in a micro-batch."""

    gpus: int
    """Number of processes, one per GPU. 1 without a GPU."""

    least_memory: bool
    """Whether contenders prefer low memory to speed."""

    ours: dict[str, Any]
    """Options for the hub."""

    pairs: bool = False
    """Whether rows are pairs of answers, as `prompt_ids`, `chosen_ids` and `rejected_ids`."""

    @classmethod
    def read(cls, folder: Path) -> "Task":
        return cls(**json.loads((folder / "task.json").read_text(encoding="utf-8")))

    def write(self, folder: Path) -> None:
        (folder / "task.json").write_text(json.dumps(asdict(self)), encoding="utf-8")

    def accumulation(self, micro_rows: int) -> int:
        """Return the gradient accumulation steps for micro-batches of `micro_rows` rows.

        Libraries that pack by themselves don't take a number of samples. They get as many packed rows as hold them on average.
        """
        rows = self.batch * self.mean / self.longest if self.packed else self.batch
        return max(1, round(rows / (micro_rows * self.gpus)))


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step over all processes."""

    number: int
    time: float
    """End of the step, in seconds since the epoch."""

    tokens: int
    """Number of tokens without padding."""

    loss: float | None = None
    peak_bytes: int | None = None
    """Peak memory that torch allocated, the largest over the processes. None without a GPU."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A contender: how it is started, and how its figures are read."""

    title: str
    """Name in the table."""

    needs: str
    """Module that must be installed."""

    environment: str
    """NAME of the variable `HUB_PEER_NAME` that sets its environment."""

    command: Callable[[Task, Path], list[str]]
    """Arguments of the interpreter for a task. Output is written to the folder."""

    refuses: Callable[[str, int], str | None]
    """Why it can't run a kind of workload on a number of GPUs. None: it can."""

    steps: Callable[[Path], list[Step]]
    """The steps so far, read from its folder."""

    about: Callable[[Path], dict[str, Any]]
    """Its settings (`how`) and `versions`, read from its folder."""


def peers() -> dict[str, Peer]:
    """Return all contenders by name. The hub is the first."""
    from benchmarks.peers import mini_trainer, ours, trl, unsloth

    return {**ours.CONTENDERS, **unsloth.CONTENDERS, **trl.CONTENDERS, **mini_trainer.CONTENDERS}
