"""Checkpoints: all that training needs to go on exactly where it was, in safetensors and JSON only.

A checkpoint is a folder `checkpoints/step-00000010/` with
    model/                 the model as a user loads it
    trainable.safetensors  the weights that train, in the type they train in
    optimizer.safetensors  the optimizer's tensors; optimizer.json its numbers
                           (both are folders with a file per process where these share the model out)
    random-rank0.safetensors  the random generators of each rank
    state.json             step, schedule, counts, and what the run was, to refuse another one
    manifest.json          size and sha256 of each file, written last
It is written aside and renamed when complete (`save.py`), so that a folder of that name is always whole. A checkpoint of any
number of processes, whole or in shares, is read by any other number.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from hub.errors import ModelError
from hub.parallel.session import Session
from hub.parallel.sharded_tensors import StoredTensors
from hub.train.checkpoints.rng import restore_random_state

MANIFEST = "manifest.json"

Files = dict[str, dict[str, Any]]
"""Size and sha256 of files by their names, as a manifest has them."""


def checkpoint_name(step: int) -> str:
    """The folder's name; names sort by step."""
    return f"step-{step:08d}"


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder that have a manifest, oldest first."""
    return sorted(path.parent for path in folder.glob(f"step-*/{MANIFEST}"))


def newest_valid(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose files are as they were written; damaged ones are passed over with a line."""
    for checkpoint in reversed(checkpoints(folder)):
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint
        say(f"checkpoint {checkpoint.name} is damaged and passed over: {problem}")
    return None


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, by its manifest; None when all are as they were written."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, expected in files.items():
            file = checkpoint / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != expected["size"]:
                return f"{name} has {file.stat().st_size} bytes instead of {expected['size']}"
            if _sha256(file) != expected["sha256"]:
                return f"{name} has other content than was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST}: {error}"
    return None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint's state.json."""
    state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    return state


def load_checkpoint(
    checkpoint: Path, session: Session, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Bring weights, optimizer and random generators to where a checkpoint left them.

    The generators are restored for the same number of ranks only; otherwise dropout draws other numbers.

    Returns:
        The checkpoint's state.json.

    Raises:
        ModelError: the checkpoint is of another model.
    """
    state = read_state(checkpoint)
    stored = StoredTensors(checkpoint, "trainable")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if (expected := {name: session.strategy.shape(p) for name, p in trained.items()}) != stored.shapes:
        odd = sorted(set(trained) ^ set(stored.shapes))[:3] or [n for n in trained if expected[n] != stored.shapes[n]][:3]
        raise ModelError(f"{checkpoint} is of another model: {', '.join(odd)} do not agree")
    numbers = json.loads((checkpoint / "optimizer.json").read_text(encoding="utf-8"))
    session.strategy.load(model, optimizer, stored, StoredTensors(checkpoint, "optimizer"), numbers)
    file = checkpoint / f"random-rank{session.group.rank}.safetensors"
    if state["world"] == session.group.world and file.is_file():
        stored = StoredTensors(checkpoint, file.stem)
        restore_random_state({name: stored.read(name) for name in stored.shapes}, session.device)
    return state


def remove_old(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints and the one with the lowest held-out loss."""
    found = checkpoints(folder)
    measured = [(read_state(path).get("eval_loss"), path) for path in found]
    best = min(((loss, path) for loss, path in measured if loss is not None), default=(None, None))[1]
    for old in found[:-keep]:
        if old != best:
            shutil.rmtree(old)


def seal(folder: Path, files: Iterable[Path]) -> Files:
    """Bring files to the disk; returns their entries in the manifest of the folder."""
    found: Files = {}
    for file in files:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
        found[file.relative_to(folder).as_posix()] = {"size": file.stat().st_size, "sha256": _sha256(file)}
    return found


def sync_folder(folder: Path) -> None:
    """Bring the names of a folder's files to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
