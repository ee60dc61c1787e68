"""Checkpoints: the full training state for an exact resume, in safetensors and JSON only.

A checkpoint is a folder `checkpoints/step-00000010/` with
    model/                 the model as a user loads it
    trainable.safetensors  the weights that train, in the dtype they train in
    optimizer.safetensors  the optimizer's tensors; optimizer.json has its numbers
                           (if the model is sharded, both are folders with one file per process)
    random-rank0.safetensors  the random generators of each rank
    state.json             step, schedule, counts, and a description of the run, to refuse another run
    manifest.json          size and sha256 of each file, written last
It is written to a temporary folder and renamed when complete (`save.py`), so a folder of that name is always complete. Any
number of processes can load a checkpoint of any other number, sharded or not.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict

import torch

from hub.errors import ModelError
from hub.models.loading_report import difference
from hub.parallel.optimizer_state import group_numbers
from hub.parallel.session import Session
from hub.parallel.sharded_tensors import StoredTensors
from hub.system.files import sync_file
from hub.train.checkpoints.rng import restore_random_state

MANIFEST = "manifest.json"


class FileEntry(TypedDict):
    """One file in a manifest."""

    size: int
    sha256: str


Files = dict[str, FileEntry]
"""File name -> size and sha256, as in a manifest."""


def checkpoint_name(step: int) -> str:
    """Name of a step's checkpoint folder. Names sort by step."""
    return f"step-{step:08d}"


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder that have a manifest, oldest first."""
    return sorted(path.parent for path in folder.glob(f"step-*/{MANIFEST}"))


def newest_valid(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose files match its manifest. Damaged ones are skipped and reported."""
    for checkpoint in reversed(checkpoints(folder)):
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint
        say(f"checkpoint {checkpoint.name} is damaged and skipped: {problem}")
    return None


def damage(checkpoint: Path) -> str | None:
    """The first file that does not match a checkpoint's manifest, as a message. None if all match."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, expected in files.items():
            file = checkpoint / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != expected["size"]:
                return f"{name} has {file.stat().st_size} bytes instead of {expected['size']}"
            if _sha256(file) != expected["sha256"]:
                return f"the content of {name} has changed since it was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST}: {error}"
    return None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Read a checkpoint's state.json."""
    state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    return state


def load_checkpoint(
    checkpoint: Path,
    session: Session,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    with_optimizer: bool = True,
    with_random: bool = True,
) -> dict[str, Any]:
    """Restore weights, optimizer and random generators from a checkpoint.

    The generators are restored only for the same number of ranks; otherwise dropout draws different numbers.

    Args:
        checkpoint: its folder.
        session: processes, device and strategy.
        model: receives the weights.
        optimizer: receives its state and hyperparameters.
        with_optimizer: whether the checkpoint's optimizer is of the same kind. If not, this one stays as it is.
        with_random: whether the random generators continue. If not, they stay as they are.

    Returns:
        The checkpoint's state.json.

    Raises:
        ModelError: the checkpoint is of another model.
    """
    state = read_state(checkpoint)
    stored = StoredTensors(checkpoint, "trainable")
    expected = {name: session.strategy.shape(p) for name, p in model.named_parameters() if p.requires_grad}
    if misfit := difference(stored.shapes, expected):
        raise ModelError(
            f"{checkpoint} is of another model: {misfit.words()}. Type the options that the run began with, or start a new run"
        )
    numbers = json.loads((checkpoint / "optimizer.json").read_text(encoding="utf-8"))
    moments = StoredTensors(checkpoint, "optimizer")
    if not with_optimizer:
        moments, numbers = StoredTensors.none(), {"values": {}, "groups": group_numbers(optimizer)}
    session.strategy.load(model, optimizer, stored, moments, numbers)
    file = checkpoint / f"random-rank{session.group.rank}.safetensors"
    if with_random and state["world"] == session.group.world and file.is_file():
        stored = StoredTensors(checkpoint, file.stem)
        restore_random_state({name: stored.read(name) for name in stored.shapes}, session.device)
    return state


def remove_old(folder: Path, keep: int) -> None:
    """Remove all checkpoints but the newest `keep` and the one with the lowest `score`. NaN is never the lowest."""
    stored = checkpoints(folder)
    measured = [(_score(path), path) for path in stored]
    best = min(((loss, path) for loss, path in measured if loss is not None and math.isfinite(loss)), default=(None, None))[1]
    for old in stored[:-keep]:
        if old != best:
            remove(old)


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint, at once for every reader: it loses its name first. What can't be removed is left under another."""
    hidden = checkpoint.with_name(f".{checkpoint.name}.removed")
    shutil.rmtree(hidden, ignore_errors=True)
    with suppress(OSError):
        checkpoint.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def _score(checkpoint: Path) -> float | None:
    try:
        score: float | None = read_state(checkpoint).get("score")
    except (OSError, ValueError):  # damaged
        return None
    return score


def seal(folder: Path, files: Iterable[Path]) -> Files:
    """Bring files to disk. Returns their entries for the folder's manifest."""
    entries: Files = {}
    for file in files:
        sync_file(file)
        entries[file.relative_to(folder).as_posix()] = {"size": file.stat().st_size, "sha256": _sha256(file)}
    return entries


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
