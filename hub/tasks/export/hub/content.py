"""What is pushed: which file gets to which place of the repository, without secrets and without folders of this machine."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from hub.errors import ConfigError, ModelError
from hub.models.finished import ADAPTER_CONFIG, Finished
from hub.secrets import secret_in
from hub.tasks.export.card_facts import CARD
from hub.tasks.export.card_loading import MODELFILE
from hub.tasks.export.card_private import name_of
from hub.tasks.export.job import Delivered

ADAPTER_FOLDER = "adapter"
"""Where an adapter gets to in a repository whose root holds something else."""

LEFT_OUT = (
    ".*",
    "*.partial",
    "*.lock",
    "*.log",
    "*.pt",
    "*.pth",
    "*.pkl",
    "*.bin.tmp",
    "optimizer*",
    "scheduler*",
    "random-rank*",
    "trainer_state.json",
    "training_args*",
    "events.out.*",
    "checkpoints",
    "exports",
    "run.yaml",
    "plan.json",
    "result.json",
    "metrics.jsonl",
)
"""Names of files and folders that belong to training and never leave the machine."""

WEIGHTS = ("model*.safetensors", "model.safetensors.index.json", "pytorch_model*", "adapter_model*")
"""Files that a program would read in place of those that are pushed, if an earlier push left them."""

LARGEST_TEXT = 2**24
"""Largest file in bytes that is searched for secrets, unless its name says that it holds weights."""

_BINARY = (".safetensors", ".gguf", ".model", ".png")


@dataclass(frozen=True, kw_only=True)
class Content:
    """What is pushed."""

    files: dict[str, Path | bytes]
    """Path in the repository -> file, or what is sent in its place."""

    sources: dict[str, Path]
    """Path in the repository -> file on this machine."""

    card: str
    """Path of the model card."""


def of_exports(done: Mapping[str, Sequence[Delivered]]) -> Content:
    """What exporters of the same call wrote: the first whole model, GGUF files and a Modelfile at the root.

    A model beside the first one gets a folder of its own.
    """
    found: dict[str, Path] = {}
    delivered = [one for several in done.values() for one in several]
    whole = [one for one in delivered if (one.path / "config.json").is_file()]
    for one in delivered:
        if not one.path.is_dir():
            found[one.path.name] = one.path
            continue
        prefix = "" if one not in whole or one is whole[0] else f"{one.path.name}/"
        for name, file in _files(one.path).items():
            if f"{prefix}{name}" != CARD:
                found.setdefault(f"{prefix}{name}", file)
    return _content(found, CARD)


def of_run(finished: Finished, held: Sequence[str]) -> Content:
    """The adapter or the model as its run saved it.

    Args:
        finished: the model.
        held: what the repository holds already.

    Raises:
        ConfigError: it is no folder of this machine.
    """
    folder = finished.folder
    if folder is None:
        raise ConfigError(
            f"export.to=hub: {finished.name} is on the model hub already, and nothing else is asked for. "
            "Type run=RUN_FOLDER, or another exporter too: to=gguf,hub"
        )
    others = any("/" not in name and (name == "config.json" or name.endswith(".gguf")) for name in held)
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    prefix = f"{ADAPTER_FOLDER}/" if is_adapter and others else ""
    files = {f"{prefix}{name}": file for name, file in _files(folder).items() if name != CARD}
    return _content(files, f"{prefix}{CARD}")


def stale(content: Content, held: Sequence[str]) -> list[str]:
    """Weights of an earlier push that a program would read in place of the new ones."""
    folders = {os.path.dirname(name) for name in content.sources if fnmatch(os.path.basename(name), "*model*.safetensors")}
    return [
        name
        for name in held
        if os.path.dirname(name) in folders
        and name not in content.files
        and any(fnmatch(os.path.basename(name), pattern) for pattern in WEIGHTS)
    ]


def check_secrets(content: Content) -> None:
    """Refuse to push a secret.

    Raises:
        ModelError: a file holds one.
    """
    for name, value in content.files.items():
        if isinstance(value, Path) and (value.suffix in _BINARY or value.stat().st_size > LARGEST_TEXT):
            continue
        text = (value if isinstance(value, bytes) else value.read_bytes()).decode("utf-8", "replace")
        if found := secret_in(text):
            raise ModelError(f"{name} holds {found}, so nothing is pushed. Take it out of {content.sources.get(name, name)}")


def _files(folder: Path) -> dict[str, Path]:
    """The files of a folder that may leave the machine.

    Raises:
        ModelError: a link leads out of the folder.
    """
    found: dict[str, Path] = {}
    root = os.path.realpath(folder)
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        if not file.is_file() or any(fnmatch(part, pattern) for part in parts for pattern in LEFT_OUT):
            continue
        real = os.path.realpath(file)
        if not real.startswith(f"{root}{os.sep}") and not _in_cache(folder, real):
            raise ModelError(f"{file} is a link to {real}, outside the folder, so nothing is pushed. Put the file itself there")
        found["/".join(parts)] = file
    return found


def _in_cache(folder: Path, real: str) -> bool:
    """Whether a link leads to the files of the same model in the model hub's cache."""
    return folder.parent.name == "snapshots" and real.startswith(os.path.realpath(folder.parents[1] / "blobs") + os.sep)


def _content(found: Mapping[str, Path], card: str) -> Content:
    files: dict[str, Path | bytes] = {}
    for name, file in found.items():
        files[name] = _public(name, file, found) or file
    return Content(files=files, sources=dict(found), card=card)


def _public(name: str, file: Path, found: Mapping[str, Path]) -> bytes | None:
    """What is sent in place of a file that names folders of this machine. None: the file itself."""
    if os.path.basename(name) == MODELFILE:
        return _modelfile(name, file, found)
    if file.suffix != ".json" or file.stat().st_size > LARGEST_TEXT:
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return None
    public = _without_folders(values)
    return None if public == values else (json.dumps(public, indent=2, ensure_ascii=False) + "\n").encode()


def _without_folders(value: Any) -> Any:
    """A JSON value in which folders and files of this machine are their names."""
    if isinstance(value, str):
        local = os.path.isabs(value) and len(Path(value).parts) > 2
        return name_of(value) if local else value
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    return value


def _modelfile(name: str, file: Path, found: Mapping[str, Path]) -> bytes:
    """A Modelfile that names the weights by their place in the repository."""

    def place(line: re.Match[str]) -> str:
        wanted = os.path.basename(line[2])
        places = [other for other in found if os.path.basename(other) == wanted]
        return f"{line[1]} ./{os.path.relpath(places[0], os.path.dirname(name) or '.')}" if places else line[0]

    return re.sub(r"(?m)^(FROM|ADAPTER)\s+(\S+)\s*$", place, file.read_text(encoding="utf-8")).encode()
