"""What a model card tells: what the run folder, the base and the data say of themselves. Nothing is guessed."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hub.config.schema import DataConfig, ModelConfig
from hub.errors import HubError
from hub.models.finished import Asked, Finished, finished_run
from hub.tasks.export.card_private import hub_id, name_of
from hub.tasks.report.record import Record, as_mapping, read_record

LICENSE_KEYS = ("license", "license_name", "license_link")
CARD = "README.md"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source of training data."""

    name: str
    id: str | None = None
    """Its id on the model hub. None: it is not from there."""

    license: str = ""
    """As its own card gives it. Empty: it gives none."""

    held_out: bool = False


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a model."""

    base: str
    """What the base is called: its id, or the last part of its folder."""

    base_id: str | None
    """Its id on the model hub. None: it is not from there."""

    revision: str | None
    license: Mapping[str, Any]
    """`license`, `license_name` and `license_link`, as far as the base's own card gives them."""

    license_files: tuple[str, ...]
    trained: bool
    """Whether it is another model than its base."""

    record: Record | None = None
    """The run that made it. None: no run of the hub is known."""

    sources: list[Source] = field(default_factory=list)


def facts_of(asked: Asked) -> Facts:
    """What is known of the model that a verb was asked for."""
    return _facts(asked.model)


def facts_of_run(record: Record) -> Facts | None:
    """What is known of the model of a run. None: its config can't be read, or it has no model."""
    if record.cfg is None:
        return None
    try:
        return _facts(finished_run(str(record.path), record.cfg.output_dir, record.cfg), record)
    except HubError:
        return None


def _facts(finished: Finished, record: Record | None = None) -> Facts:
    if record is None and finished.run_path is not None:
        record = read_record(finished.run_path)
    base = finished.before or finished.base
    folder = _folder_of(base, record)
    licenses = ("LICENSE", "NOTICE", "USE_POLICY")
    names = () if folder is None else tuple(sorted(p.name for p in folder.iterdir() if p.name.startswith(licenses)))
    return Facts(
        base=name_of(base.path),
        base_id=hub_id(base.path),
        revision=_revision(base, folder),
        license=_license(folder, hub_id(base.path), "model"),
        license_files=names,
        trained=finished.adapter is not None or finished.before is not None,
        record=record,
        sources=[] if record is None or record.cfg is None else list(_sources(record.cfg.data)),
    )


def _folder_of(base: ModelConfig, record: Record | None) -> Path | None:
    """Local folder of the base's files."""
    path = Path(os.path.expanduser(base.path))
    if path.is_dir():
        return path
    found = Path(str((record.result if record else {}).get("base_model_path") or ""))
    return found if found.parts and found.is_dir() else _snapshot(base)


def _snapshot(base: ModelConfig) -> Path | None:
    """The folder of the base in the model hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    if (found := hub_id(base.path)) is None:
        return None
    file = try_to_load_from_cache(found, "config.json", revision=base.revision)
    return Path(file).parent if isinstance(file, str) else None


def _revision(base: ModelConfig, folder: Path | None) -> str | None:
    if hub_id(base.path) is None or folder is None:
        return base.revision
    from hub.models.saved_folder import revision_of

    return revision_of(base, folder) or (folder.name if folder.parent.name == "snapshots" else None)


def _license(folder: Path | None, model_id: str | None, kind: str) -> dict[str, Any]:
    """The license that the card of a model or a dataset gives. Empty: there is no card here, or it gives none."""
    import yaml  # type: ignore[import-untyped]
    from huggingface_hub import metadata_load, try_to_load_from_cache

    card: Any = folder / CARD if folder is not None and (folder / CARD).is_file() else None
    if card is None and model_id is not None:
        card = try_to_load_from_cache(model_id, CARD, repo_type=kind)
    if not isinstance(card, str | Path):
        return {}
    try:
        values = as_mapping(metadata_load(card))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return {key: values[key] for key in LICENSE_KEYS if isinstance(values.get(key), str | list) and values[key]}


def _sources(data: DataConfig) -> Iterator[Source]:
    named = [(one.path, one.name) for one in data.mix] if data.mix else [(data.path, None)] if data.path else []
    for path, name in named:
        yield _source(path, name, held_out=False)
    if data.eval_path:
        yield _source(data.eval_path, None, held_out=True)


def _source(path: str, name: str | None, held_out: bool) -> Source:
    found, folder = hub_id(path), Path(os.path.expanduser(path))
    given = _license(folder if folder.is_dir() else None, found, "dataset").get("license", "")
    license_ = ", ".join(map(str, given)) if isinstance(given, list) else str(given)
    return Source(name=name or name_of(path), id=found, license=license_, held_out=held_out)
