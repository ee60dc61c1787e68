"""Model cards: the README.md of what the hub wrote, with metadata for the model hub. No network, no path of this machine."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hub.tasks.export import card_sections as sections
from hub.tasks.export.card_facts import CARD, Facts, facts_of_run
from hub.tasks.export.card_loading import HERE, IMAGES, kinds, loading
from hub.tasks.export.card_private import shown, without_machine
from hub.tasks.export.job import Delivered
from hub.tasks.report.record import ODD_VALUES, read_record
from hub.version import VERSION

_LIBRARIES = ("torch", "transformers", "peft", "safetensors")
_FULL = ("f32", "f16", "bf16")
"""Types of the weights of a GGUF file that hold what a merged model holds."""


def card_text(facts: Facts, files: Mapping[str, Path], exports: Sequence[Delivered] = (), place: str = HERE) -> str:
    """The text of a card.

    Args:
        facts: of the model.
        files: path in the folder or repository -> file on this machine.
        exports: what was written there, with its check. Empty: the model as its run saved it.
        place: id of the repository, if it is for one.
    """
    from huggingface_hub import ModelCardData

    metadata = ModelCardData(**_metadata(facts, files, exports)).to_yaml()
    lines = [sections.title(facts, exports), ""]
    for line in sections.warning(exports):
        lines += [line, ""]
    lines += [*sections.about(facts), ""]
    for heading, found in _sections(facts, files, exports, place):
        body = _body(found)
        if any(body):
            lines += [f"## {heading}", "", *body, ""]
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines))
    return f"---\n{without_machine(metadata)}\n---\n\n{without_machine(text).rstrip()}\n"


def write_card(folder: Path, facts: Facts, exports: Sequence[Delivered] = ()) -> None:
    """Write the card of a folder. One that is there is replaced.

    Args:
        folder: holds a model, an adapter or GGUF files.
        facts: of the model.
        exports: what was written there, with its check.
    """
    text = card_text(facts, files_in(folder), exports)
    (folder / CARD).unlink(missing_ok=True)  # it may be a second name of the base's file
    (folder / CARD).write_text(text, encoding="utf-8")


def write_cards(made: Path, final: Path, facts: Facts, exports: Sequence[Delivered]) -> None:
    """Write a card into each folder that an exporter wrote.

    Args:
        made: where the folder of the exporter is now.
        final: the name that it will have, as `path` of each export has it.
        facts: of the model.
        exports: what the exporter wrote.
    """
    by_folder: dict[Path, list[Delivered]] = {}
    for one in exports:
        path = made / one.path.relative_to(final)
        by_folder.setdefault(path if path.is_dir() else path.parent, []).append(one)
    for folder, several in by_folder.items():
        write_card(folder, facts, several)


def write_card_of_run(run_path: Path) -> None:
    """Write the card of the model that a run has saved, when it has ended. Without a model nothing is written."""
    facts = facts_of_run(read_record(run_path))
    if facts is not None:
        write_card(run_path / "model", facts)


def files_in(folder: Path) -> dict[str, Path]:
    """The files of a folder by their paths within it."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def _sections(
    facts: Facts, files: Mapping[str, Path], exports: Sequence[Delivered], place: str
) -> Iterator[tuple[str, Iterable[str]]]:
    yield "How to load it", loading(files, place, facts)
    if (record := facts.record) is not None:
        yield "Data", sections.data(facts)
        yield "Training", sections.training(record)
        yield "Learnt, kept, lost", sections.changes(record)
    elif facts.trained:
        yield "Training", ["It was not made by a run that is known here, so data, steps and losses are not known."]
    yield "The export, compared with the model that was trained", sections.gate(exports)
    versions = [["finetune-hub", VERSION], *([name, found] for name in _LIBRARIES if (found := _version(name)))]
    yield "Versions", sections.table(("written with", "version"), versions)


def _body(lines: Iterable[str]) -> list[str]:
    """The lines of a section. Empty: a file of the run holds values that this version of the hub does not write."""
    try:
        return list(lines)
    except ODD_VALUES:
        return []


def _metadata(facts: Facts, files: Mapping[str, Path], exports: Sequence[Delivered]) -> dict[str, Any]:
    """The values of the metadata block. What is not known is left out."""
    found = kinds(files)
    values: dict[str, Any] = {}
    if facts.base_id is not None:
        relation = _relation(facts, found, exports)
        values |= {"base_model": facts.base_id} | ({"base_model_relation": relation} if relation else {})
    library = "peft" if found == {"adapter"} else "transformers" if found & {"model", "compressed"} else None
    values |= {"library_name": library} if library else {}
    auto = facts.record.plan.get("auto_class") if facts.record is not None else None
    values["pipeline_tag"] = "image-text-to-text" if auto == IMAGES else "text-generation"
    values |= shown(dict(facts.license))
    if ids := [source.id for source in facts.sources if source.id]:
        values["datasets"] = list(dict.fromkeys(ids))
    algorithm = facts.record.algorithm if facts.record is not None else ""
    tags = ["finetune-hub", algorithm, *(name for name in ("gguf", "ollama") if name in found)]
    tags += ["compressed-tensors"] if "compressed" in found else []
    tags += [f"base_model:adapter:{facts.base_id}"] if "adapter" in found and facts.base_id else []
    values["tags"] = [tag for tag in tags if tag]
    return values


def _relation(facts: Facts, found: frozenset[str], exports: Sequence[Delivered]) -> str | None:
    """How the model stands to its base: a tuned model in fewer bits is not the base in fewer bits."""
    if found == {"adapter"}:
        return "adapter"
    if facts.trained:
        return "finetune"
    fewer = "compressed" in found or any(one.exporter == "gguf" and one.kind not in _FULL for one in exports)
    return "quantized" if fewer else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
