"""A finished model: a run's, a whole one in a folder or on the model hub, or an adapter on its base.

`hub/tasks/loading.py` loads it. Nothing here imports torch.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hub.config.finished import FinishedOptions
from hub.config.schema import ModelConfig, RunConfig
from hub.errors import ConfigError, ModelError, did_you_mean
from hub.models.safety import check_links
from hub.result import Result
from hub.system.files import names_apart

LATEST = "latest"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Finished:
    """One finished model."""

    name: str
    """What tables call it: the name of the run or the value of `model.path`."""

    base: ModelConfig
    """The options of the base model of an adapter, or of the whole model."""

    adapter: Path | None = None
    """Folder of the adapter that lies on the base. None: the model is whole."""

    run_path: Path | None = None
    """Run folder, if a run made it."""

    before: ModelConfig | None = None
    """The options of the model that training began with. None: it is not known."""

    @property
    def folder(self) -> Path | None:
        """Local folder of what was trained: the adapter or the whole model. None: not a folder of this machine."""
        path = self.adapter or Path(os.path.expanduser(self.base.path))
        return path if path.is_dir() else None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a verb on finished models is asked: the argument of its function."""

    options: FinishedOptions
    """The options that are the verb's own."""

    cfg: RunConfig
    """The config. For a run it is that of the run, with what was typed."""

    finished: Finished | None = None
    """The model that was named. None: the verb needs none."""

    from_run: frozenset[str] = frozenset()
    """Options that the run has set and that were not typed, e.g. `data.path`."""

    verbs: frozenset[str] = frozenset()
    """Names of all verbs on finished models, for advice on what to do next."""

    @property
    def model(self) -> Finished:
        """The model that was named, of a verb that needs one."""
        assert self.finished is not None
        return self.finished


def run_folder(run: str, output_dir: str = "runs", needs_model: bool = True) -> Path:
    """The folder of a run.

    Args:
        run: `latest`, a run folder, one of its checkpoints, or the name of a run in `output_dir`.
        output_dir: where runs are.
        needs_model: whether a model without a run would do as well, for the message.

    Raises:
        ConfigError: there is no such run.
    """
    return _place(run, output_dir, needs_model)[0]


def finished_run(run: str, output_dir: str, cfg: RunConfig) -> Finished:
    """The model that a run has made.

    Args:
        run: as of `run_folder`. A checkpoint stands for the model that it holds.
        output_dir: where runs are.
        cfg: the config of the run.

    Raises:
        ConfigError: the run has no model, or not yet.
        ModelError: the base of its adapter is gone.
    """
    folder, place = _place(run, output_dir)
    if place != folder:
        model = place / "model"
        if not model.is_dir():
            raise ConfigError(f"run={run}: this checkpoint holds no model. Name another one, or the run folder {folder}")
        return _of_folder(model, f"{folder.name}/{place.name}", folder, cfg.model)
    model = folder / "model"
    if not (folder / "result.json").is_file():
        raise ConfigError(f"run={run}: {folder} is not finished: it has no result yet. {_instead(folder)}")
    try:
        result = Result.read(folder / "result.json")
    except (OSError, ValueError, TypeError):
        raise ConfigError(f"run={run}: {folder}/result.json can't be read. Type model.path={model} for its model") from None
    if result.status == "verified":
        raise ConfigError(f"run={run}: {folder} verified and trained nothing, so it has no model. Name a run that trained")
    if result.status != "completed":
        reached = f"has the status {result.status}, after {result.num_steps} steps"
        raise ConfigError(f"run={run}: {folder} {reached}. {_instead(folder)}")
    if not any((model / name).is_file() for name in ("config.json", ADAPTER_CONFIG)):
        raise ConfigError(f"run={run}: {folder} is completed, but {model} holds no model. Was it moved? Type model.path=FOLDER")
    return _of_folder(model, folder.name, folder, cfg.model)


def adapter_folder(path: str) -> Path | None:
    """The folder, if `model.path` is one of an adapter without a whole model."""
    folder = Path(os.path.expanduser(path)) if path else None
    if folder is None or not os.path.isfile(folder / ADAPTER_CONFIG) or os.path.isfile(folder / "config.json"):
        return None
    return folder.absolute()


def finished_adapter(folder: Path, model: ModelConfig) -> Finished:
    """An adapter in a folder, on the base that its config names.

    Args:
        folder: holds adapter_config.json.
        model: options of the model: `trust_remote_code`, `dtype` and so on hold for the base.

    Raises:
        ModelError: its config can't be read, or its base is gone.
    """
    values = adapter_values(folder)
    named = replace(model, path=str(values["base_model_name_or_path"] or ""), revision=values.get("revision"))
    return _with_base(Finished(name=folder.name, base=named, adapter=folder, before=named), folder)


def finished_model(model: ModelConfig) -> Finished:
    """A whole model, by its options."""
    return Finished(name=model.path.rstrip("/"), base=model)


def named_apart(models: Sequence[Finished]) -> list[Finished]:
    """The same models, with more of their folders in the names that several of them have."""
    names = [model.name for model in models]
    same = {model.name: [one for one in models if one.name == model.name] for model in models if names.count(model.name) > 1}
    return [replace(model, name=_apart(model, same[model.name])) if model.name in same else model for model in models]


def _apart(model: Finished, others: Sequence[Finished]) -> str:
    places = [one.run_path if one.run_path and "/" not in one.name else one.folder or Path(one.base.path) for one in others]
    return names_apart(places)[others.index(model)]


def output_folder(out: str | None, default: Path, models: Sequence[Path]) -> Path:
    """The folder for a model that is made of others. Only what was written to the default folder is replaced.

    Args:
        out: as typed. None: the default folder.
        default: the verb's own folder.
        models: folders of the models that it is made of.

    Raises:
        ConfigError: something would be lost, or it can't be written.
    """
    place = default.absolute() if out is None else Path(os.path.expanduser(out)).absolute()
    name = f"out={out}" if out is not None else str(place)
    if out is not None and os.path.lexists(place) and not (place.is_dir() and not any(place.iterdir())):
        raise ConfigError(f"{name}: it exists, and would be replaced. Type out=FOLDER, a new one")
    if any(os.path.realpath(place) == os.path.realpath(model) for model in models):
        raise ConfigError(f"{name} is one of the models, and would be replaced. Type out=FOLDER, a new one")
    if place.exists() and not any((place / file).is_file() for file in ("config.json", ADAPTER_CONFIG)) and out is None:
        raise ConfigError(f"{name}: this is no model, and it would be replaced. Type out=FOLDER, a new one")
    parent = next(folder for folder in place.parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ConfigError(f"{name}: can't write to {parent}. Type out=FOLDER in a writable folder")
    return place


def _of_folder(model: Path, name: str, folder: Path, before: ModelConfig) -> Finished:
    if (model / ADAPTER_CONFIG).is_file():
        adapter_values(model)
        return _with_base(Finished(name=name, base=before, adapter=model, run_path=folder, before=before), model)
    # What was saved has all tokens already, and its weights are stored in full.
    whole = replace(
        ModelConfig(), path=str(model), dtype=before.dtype, trust_remote_code=before.trust_remote_code, family=before.family
    )
    return Finished(name=name, base=whole, run_path=folder, before=before)


def adapter_values(folder: Path) -> dict[str, Any]:
    """The config of an adapter, whose weights are there too."""
    again = "Copy or download the adapter again"
    check_links(folder, str(folder))
    try:
        values: dict[str, Any] = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        values["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise ModelError(f"{folder}: {ADAPTER_CONFIG} can't be read. {again}") from None
    if not (folder / ADAPTER_WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        why = ", and adapter_model.bin is a pickle, which can run any code, so the hub never loads it" if pickled else ""
        raise ModelError(f"{folder}: {ADAPTER_WEIGHTS} is missing{why}. {again}")
    return values


def _with_base(finished: Finished, folder: Path) -> Finished:
    """Refuse a base that was a folder and is gone."""
    path = finished.base.path
    if not path:
        raise ModelError(f"{folder}: {ADAPTER_CONFIG} names no base model. Write its id or folder as base_model_name_or_path")
    if path.startswith(("/", "~", ".")) and not os.path.isdir(os.path.expanduser(path)):
        raise ModelError(
            f"{folder}: the base of this adapter, {path}, is gone. Put it back there, or write where it is now as "
            f"base_model_name_or_path into {ADAPTER_CONFIG} and type model.path={folder}"
        )
    return finished


def _place(run: str, output_dir: str, needs_model: bool = True) -> tuple[Path, Path]:
    """The run folder, and the place that was named: that folder or one of its checkpoints."""
    named = f"{output_dir}/{LATEST}" if run == LATEST else run
    place = Path(os.path.realpath(os.path.expanduser(named)))
    if not place.exists() and not os.path.isabs(named):
        place = Path(os.path.realpath(os.path.join(os.path.expanduser(output_dir), run)))
    if (place / "state.json").is_file() and (folder := run_of_checkpoint(place)) is not None:
        return folder, place
    if (place / "run.yaml").is_file():
        return place, place
    if place.name == "model" and (place.parent / "run.yaml").is_file():
        return place.parent, place.parent
    if run == LATEST:
        or_model = ", run=RUN_FOLDER, or model.path=FOLDER" if needs_model else ", or run=RUN_FOLDER"
        hint = f"there is no run in {output_dir}. Type output_dir=FOLDER with runs{or_model}"
    else:
        runs = (file.parent.name for file in Path(os.path.expanduser(output_dir)).glob("*/run.yaml"))
        near = did_you_mean(place.name, runs)
        instead = f"a folder in {output_dir}, or model.path=FOLDER for a model without a run"
        what = f"{place} is not a run folder." if place.exists() else f"there is no such folder, here or in {output_dir}.{near}"
        hint = f"{what} Type run=latest, {instead if needs_model else f'or a run folder in {output_dir}'}"
    raise ConfigError(f"run={run}: {hint}")


def run_of_checkpoint(place: Path) -> Path | None:
    """The run folder that a checkpoint lies in, also one that was set aside. None: it lies in none."""
    return next((folder for folder in place.parents[1:3] if os.path.isfile(folder / "run.yaml")), None)


def _instead(folder: Path) -> str:
    """What to type about a run without a model."""
    saved = sorted(folder.glob("checkpoints/step-*/model"))
    checkpoint = f", or ask its last checkpoint: run={saved[-1].parent}" if saved else ""
    return f"To continue it type python -m hub resume={folder}{checkpoint}"
