"""Checkpoints: all that training needs to go on exactly where it was, in safetensors and JSON only.

A checkpoint is a folder `checkpoints/step-00000010/` with
    model/                 the model as a user loads it
    trainable.safetensors  the weights that train, in the type they train in
    optimizer.safetensors  the optimizer's tensors; optimizer.json its numbers
    random-rank0.safetensors  the random generators of each rank
    state.json             step, schedule, counts, and what the run was, to refuse another one
    manifest.json          size and sha256 of each file, written last
It is written aside and renamed when complete, so that a folder of that name is always whole.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hub.data.prepare import Sample
from hub.errors import ModelError
from hub.run import write_json
from hub.train.distributed import barrier, sum_over_ranks
from hub.train.rng import random_state, restore_random_state
from hub.train.session import Session
from hub.train.strategy import full, full_weights, like

MANIFEST = "manifest.json"


def checkpoint_name(step: int) -> str:
    """The folder's name; names sort by step."""
    return f"step-{step:08d}"


def save_checkpoint(
    folder: Path,
    step: int,
    session: Session,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    save_model: Callable[[Path, dict[str, torch.Tensor]], None],
    keep: int,
) -> tuple[Path | None, str]:
    """Write a checkpoint and remove what is older than the newest `keep`, the best one excepted. All ranks call it.

    Args:
        folder: the run's `checkpoints/`.
        step: number of the last finished step.
        session: ranks and device.
        model: its weights that train are stored by name.
        optimizer: its state is stored by parameter name.
        state: what else is needed to go on; JSON. `eval_loss`, where present, tells which checkpoint is best.
        save_model: writes the model as a user loads it into a folder, from whole weights.
        keep: newest checkpoints that stay.

    Returns:
        The checkpoint's folder and an empty text; or None and why it could not be written (a full disk, say). Nothing
        half written is left behind and training can go on.
    """
    aside = folder / f".{checkpoint_name(step)}.partial"
    is_main, failure = session.group.is_main, ""
    # All ranks take part in these; afterwards one may fail without the others waiting for it.
    trained = full_weights(model, [name for name, p in model.named_parameters() if p.requires_grad])
    tensors, numbers = flat_optimizer_state(optimizer, model)
    whole = full_weights(model)
    try:
        if is_main:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        barrier()
        save_file(random_state(session.device), aside / f"random-rank{session.group.rank}.safetensors")
        if is_main:
            save_file({name: tensor.contiguous() for name, tensor in trained.items()}, aside / "trainable.safetensors")
            save_file(tensors, aside / "optimizer.safetensors")
            write_json(aside / "optimizer.json", numbers)
            write_json(aside / "state.json", {"step": step, "world": session.group.world, **state})
            save_model(aside / "model", whole)
    except Exception as error:  # safetensors raises its own kinds for a full disk
        failure = f"{type(error).__name__}: {error}"
    (num_failed,) = sum_over_ranks(float(bool(failure)))
    if num_failed:
        if is_main:
            shutil.rmtree(aside, ignore_errors=True)
        return None, failure or "another rank could not write its part"
    target = folder / checkpoint_name(step)
    if is_main:
        try:
            _finish(aside)
            shutil.rmtree(target, ignore_errors=True)
            aside.rename(target)
            _sync_folder(folder)
            _remove_old(folder, keep)
        except OSError as error:
            shutil.rmtree(aside, ignore_errors=True)
            failure = str(error)
    (num_failed,) = sum_over_ranks(float(bool(failure)))
    return (None, failure or "rank 0 could not write it") if num_failed else (target, "")


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
    stored = _tensors(checkpoint / "trainable.safetensors")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if {n: p.shape for n, p in trained.items()} != {n: t.shape for n, t in stored.items()}:
        odd = sorted(set(trained) ^ set(stored))[:3] or [n for n in trained if trained[n].shape != stored[n].shape][:3]
        raise ModelError(f"{checkpoint} is of another model: {', '.join(odd)} do not agree")
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(like(parameter, stored[name]))
    _restore_optimizer(checkpoint, model, optimizer)
    file = checkpoint / f"random-rank{session.group.rank}.safetensors"
    if state["world"] == session.group.world and file.is_file():
        restore_random_state(_tensors(file), session.device)
    return state


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
                tensors[place] = full(value.detach()).cpu().contiguous()
            else:
                values[place] = value
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    return tensors, {"values": values, "groups": groups}


def fingerprint(samples: Sequence[Sample]) -> str:
    """A hash of the samples' tokens and masks, in order: whether a run is resumed on the data that it began with."""
    found = hashlib.sha256()
    for sample in samples:
        found.update(len(sample).to_bytes(8, "little"))
        found.update(sample.input_ids.tobytes())
        found.update(sample.loss_mask.tobytes())
    return found.hexdigest()


def _restore_optimizer(checkpoint: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    tensors = _tensors(checkpoint / "optimizer.safetensors")
    numbers = json.loads((checkpoint / "optimizer.json").read_text(encoding="utf-8"))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    order = [names[id(parameter)] for parameter in parameters]
    state: dict[int, dict[str, Any]] = {}
    for place, value in [*tensors.items(), *numbers["values"].items()]:
        name, _, key = place.rpartition("/")
        if isinstance(value, torch.Tensor) and value.ndim:
            value = like(parameters[order.index(name)], value)
        state.setdefault(order.index(name), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    for group, kept in zip(groups, numbers["groups"], strict=True):
        # JSON has no tuples, and torch checks that its betas are one.
        group.update({key: tuple(value) if isinstance(value, list) else value for key, value in kept.items()})
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _tensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        tensors: dict[str, torch.Tensor] = load_file(file)
        return tensors
    except SafetensorError as error:
        raise ModelError(f"{file} is no safetensors file, and no other kind is read ({error})") from None


def _remove_old(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints and the one with the lowest held-out loss."""
    found = checkpoints(folder)
    measured = [(read_state(path).get("eval_loss"), path) for path in found]
    best = min(((loss, path) for loss, path in measured if loss is not None), default=(None, None))[1]
    for old in found[:-keep]:
        if old != best:
            shutil.rmtree(old)


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
