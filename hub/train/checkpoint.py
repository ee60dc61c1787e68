"""Checkpoints: what training needs to go on, in safetensors and JSON only.

A checkpoint is a folder `checkpoints/step-00000010/` with
    model/                the model as a user loads it
    trainable.safetensors the weights that train, in the type they train in
    optimizer.safetensors the optimizer's tensors; optimizer.json its numbers
    state.json            step, schedule, counts
    manifest.json         size and sha256 of each file, written last
It is written aside and renamed when complete, so that a folder of that name is always whole.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from hub.run import write_json

MANIFEST = "manifest.json"


def checkpoint_name(step: int) -> str:
    """The folder's name; names sort by step."""
    return f"step-{step:08d}"


def save_checkpoint(
    folder: Path,
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    save_model: Callable[[Path], None],
    keep: int,
) -> Path:
    """Write a checkpoint and remove the oldest beyond `keep`. Called on rank 0.

    Args:
        folder: the run's `checkpoints/`.
        step: number of the last finished step.
        model: its weights that train are stored by name.
        optimizer: its state is stored by parameter name.
        state: what else is needed to go on; JSON.
        save_model: writes the model as a user loads it into a folder.
        keep: newest checkpoints that stay.

    Returns:
        The checkpoint's folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{checkpoint_name(step)}.{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        trained = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if p.requires_grad}
        save_file(trained, aside / "trainable.safetensors")
        tensors, numbers = flat_optimizer_state(optimizer, model)
        save_file(tensors, aside / "optimizer.safetensors")
        write_json(aside / "optimizer.json", numbers)
        write_json(aside / "state.json", {"step": step, **state})
        save_model(aside / "model")
        _finish(aside)
        target = folder / checkpoint_name(step)
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
        _sync_folder(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest first."""
    return sorted(path.parent for path in folder.glob(f"step-*/{MANIFEST}"))


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, by its manifest; None when all are as they were written."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"{MANIFEST}: {error}"
    for name, expected in manifest["files"].items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected["size"]:
            return f"{name} has {file.stat().st_size} bytes instead of {expected['size']}"
        if _sha256(file) != expected["sha256"]:
            return f"{name} has other content than was written"
    return None


def flat_optimizer_state(
    optimizer: torch.optim.Optimizer, model: torch.nn.Module
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimizer's state as tensors under `parameter name/state name`, and the rest as JSON values."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, Any] = {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            place = f"{names[id(parameter)]}/{key}"
            if isinstance(value, torch.Tensor):
                tensors[place] = value.detach().cpu().contiguous()
            else:
                values[place] = value
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    return tensors, {"values": values, "groups": groups}


def _finish(folder: Path) -> None:
    """Bring every file to the disk, then write the manifest."""
    files = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
        files[str(file.relative_to(folder))] = {"size": file.stat().st_size, "sha256": _sha256(file)}
    write_json(folder / MANIFEST, {"files": files})
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
