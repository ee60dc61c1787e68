"""Where the result of a run goes: no figure that was measured before is lost for others or for a part of the rows.

A result with all figures of evaluation.json replaces it. One of fewer rows (`evaluate.limit`) goes to a file beside it. If it
has other figures, evaluation.json gets another name first.
"""

import json
from pathlib import Path
from typing import Any

from hub.system.files import write_json

OF_TRAINING = ("steps", "examples")
"""Parts that only training writes. They stay in evaluation.json."""

_ODD_VALUES = (TypeError, ValueError, LookupError, AttributeError)


def store(file: Path, values: dict[str, Any]) -> tuple[Path, str]:
    """Write the result of a run.

    Args:
        file: evaluation.json of the run.
        values: of the result.

    Returns:
        The file that has it, and a line on what was there before. Empty: nothing is to be said.

    Raises:
        OSError: it can't be written.
    """
    if not file.is_file():
        write_json(file, values)
        return file, ""
    before = json.loads(file.read_text(encoding="utf-8"))
    try:
        is_part, has_all = _is_part(values, before), _has_all(values, before)
    except _ODD_VALUES:  # of another version
        is_part, has_all = False, False
    if is_part:
        beside = file.with_name(f"{file.stem}-limit-{values['settings']['limit']}.json")
        write_json(beside, values)
        return beside, f"{file.name} has more rows of the same, so it stays"
    line = ""
    if not has_all:
        aside = next(place for n in range(1, 10**6) if not (place := file.with_name(f"{file.stem}-{n}.json")).exists())
        file.rename(aside)
        line = f"what {file.name} had before is in {aside.name}"
    write_json(file, values | {name: before[name] for name in OF_TRAINING if name in before})
    return file, line


def _rows(values: dict[str, Any]) -> dict[tuple[str, str, str], int]:
    """Figure -> its number of rows."""
    return {(row["set"], row["kind"], row["metric"]): row["n"] for row in values["rows"]}


def _is_part(new: dict[str, Any], old: dict[str, Any]) -> bool:
    """Whether a figure has fewer rows because of `evaluate.limit`."""
    before, now = _rows(old), _rows(new)
    return new["settings"]["limit"] is not None and any(now[name] < before[name] for name in now.keys() & before.keys())


def _has_all(new: dict[str, Any], old: dict[str, Any]) -> bool:
    """Whether a result has every figure of another one, on at least the same rows and beside the same model."""
    before, now = _rows(old), _rows(new)
    if any(now.get(name, -1) < number for name, number in before.items()):
        return False
    if old["settings"]["limit"] is None:
        was, sets = old["settings"]["sets"], new["settings"]["sets"]
        if any(was[name]["sha256"] != sets[name]["sha256"] for name in was):
            return False
    beside = [model["path"] for model in new["models"][1:]]
    return all(model["path"] in beside for model in old["models"][1:])
