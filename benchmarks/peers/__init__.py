"""Who takes part in `python -m benchmarks`: the hub, and each peer in a file of its own.

A file has two sides. The parent's imports nothing but the standard library: what the peer needs, which works it can't do, the
command that starts it, and how its steps are read. The other runs in a process and an environment of its own
(`python -m benchmarks.peers.NAME FOLDER`), reads `task.json` in that folder and trains; it can't import the hub.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LORA_RANK, LORA_ALPHA = 16, 32
LEARNING_RATE = {"full": 1e-5, "lora": 2e-4, "qlora": 2e-4}


@dataclass(frozen=True, kw_only=True)
class Task:
    """A work as one that takes part in it is told: the same model, the same rows, the same number of steps."""

    way: str
    """The name of the one that takes part; some do so in two ways."""

    kind: str
    """full, lora or qlora."""

    model: str
    """The model's folder."""

    rows: str
    """JSONL with `input_ids` and `labels`."""

    steps: int
    batch: int
    """Samples of a step, over all processes."""

    longest: int
    """Tokens of the longest row, and of a row that several are packed into."""

    mean: float
    """Tokens of a row on average."""

    packed: bool
    """Whether several rows go into one."""

    micro_rows: int
    """Rows of `longest` tokens in a micro-batch."""

    gpus: int
    """Processes, each with its GPU; 1 without any."""

    least_memory: bool
    """Who has a switch between speed and memory turns it to memory."""

    ours: dict[str, Any]
    """Options of the hub."""

    @classmethod
    def read(cls, folder: Path) -> "Task":
        return cls(**json.loads((folder / "task.json").read_text(encoding="utf-8")))

    def write(self, folder: Path) -> None:
        (folder / "task.json").write_text(json.dumps(asdict(self)), encoding="utf-8")

    def accumulation(self, micro_rows: int) -> int:
        """Micro-batches of a step and process, each of so many rows.

        Who packs by itself can't be told a number of samples: it gets as many packed rows as hold them on average.
        """
        rows = self.batch * self.mean / self.longest if self.packed else self.batch
        return max(1, round(rows / (micro_rows * self.gpus)))


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step over all processes."""

    number: int
    time: float
    """When it ended, in seconds since the epoch."""

    tokens: int
    """Of samples, without padding."""

    loss: float | None = None
    peak_bytes: int | None = None
    """Allocated by torch, the largest so far over the processes. None without a GPU."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One that takes part."""

    title: str
    """As the table names it."""

    needs: str
    """The module that must be installed."""

    environment: str
    """It runs as the variable `HUB_PEER_<this, in capitals>` says."""

    command: Callable[[Task, Path], list[str]]
    """What comes after the interpreter; the folder receives what is written."""

    refuses: Callable[[str, int], str | None]
    """Why it can't do a work of this kind on so many GPUs; None when it can."""

    steps: Callable[[Path], list[Step]]
    """The steps done so far, from what the process has written into its folder."""

    about: Callable[[Path], dict[str, Any]]
    """What it says of itself: `how` it did the work, `versions`."""


def peers() -> dict[str, Peer]:
    """All of them by name; the hub is the first."""
    from benchmarks.peers import mini_trainer, ours, trl, unsloth

    return {**ours.WAYS, **unsloth.WAYS, **trl.WAYS, **mini_trainer.WAYS}
