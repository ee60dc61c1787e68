"""A run folder as a report reads it: in any state, with damaged or missing files, without its plugin or its model."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

from hub.compose import runfile
from hub.config.option import leaves
from hub.config.schema import RunConfig
from hub.errors import HubError, first_line
from hub.train.curves import Curves, current_lines, number, read_curves
from hub.train.diagnosis import diagnose
from hub.train.findings import Finding

NOT_FINISHED = "not finished"
ODD_VALUES = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
"""What it leads to if a file holds values that this version of the hub does not write."""

_SAME_FOR_ALL = ("output_dir", "run_name", "model.notes", "model.family", "task", "resume", "resume_with_changes")
"""Options that say where a run is, not what was asked."""


@dataclass(frozen=True)
class Asked:
    """An option of a run that is not its default."""

    name: str
    value: Any
    default: Any
    meaning: str


@dataclass
class Record:
    """What a run folder holds."""

    path: Path
    name: str = ""
    """What the page calls it."""

    cfg: RunConfig | None = None
    """None: run.yaml can't be read, or its plugin is not installed."""

    options: dict[str, Any] = field(default_factory=dict)
    """All options by full name."""

    asked: list[Asked] = field(default_factory=list)
    plan: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    lines: list[Mapping[str, Any]] = field(default_factory=list)
    """Of metrics.jsonl, without those that a resumed run has replaced."""

    failures: list[str] = field(default_factory=list)
    evaluation: dict[str, Any] = field(default_factory=dict)
    answers: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """What could not be read, in words."""

    @property
    def status(self) -> str:
        return str(self.result.get("status") or NOT_FINISHED)

    @property
    def curves(self) -> Curves:
        return read_curves(self.lines)

    @property
    def algorithm(self) -> str:
        return str(self.result.get("algo") or self.plan.get("algorithm") or self.options.get("algo.name") or "")

    @property
    def model(self) -> str:
        return str(self.result.get("model") or self.options.get("model.path") or "")

    def findings(self) -> list[Finding]:
        """What the curves show to be wrong, read anew."""
        algo = {name.partition(".")[2]: value for name, value in self.options.items() if name.startswith("algo.")}
        data = as_mapping(self.plan.get("data"))
        units = as_mapping(data.get("train")).get("num_units")
        size, steps = self.plan.get("effective_batch_size"), self.plan.get("num_steps")
        try:
            return diagnose(self.lines, algo, steps, size, units, bool(data.get("streaming")))
        except ODD_VALUES:
            return []


def read_record(path: Path) -> Record:
    """Read a run folder.

    Args:
        path: holds run.yaml.
    """
    record = Record(path, path.name)
    _read_options(record)
    record.plan = _read_json(record, "plan.json")
    record.result = _read_json(record, "result.json")
    record.evaluation = _read_json(record, "evaluation.json")
    record.lines = current_lines(_read_lines(record, "metrics.jsonl"))
    record.answers = _read_lines(record, "answers.jsonl")
    for file in sorted(path.glob("error-rank*.json")):
        if message := _read_json(record, file.name).get("message"):
            record.failures.append(f"{file.stem}: {message}")
    return record


def last_step(record: Record) -> int:
    """The step that was logged last. 0: none."""
    step = number(record.lines[-1], "step") if record.lines else 0.0
    return int(step) if math.isfinite(step) else 0


def _read_options(record: Record) -> None:
    file = record.path / "run.yaml"
    try:
        record.cfg = runfile.read(file)
    except HubError as error:
        record.problems.append(first_line(error))
    except (OSError, UnicodeDecodeError) as error:
        record.problems.append(f"{file}: {first_line(error)}")
    if record.cfg is not None:
        for name, given, default, meaning in leaves(record.cfg):
            record.options[name] = value = _plain_value(given)
            if value != default and name not in _SAME_FOR_ALL:
                record.asked.append(Asked(name, value, default, meaning))
        return
    # Without the plugin the defaults of its options are not known: all that are set are shown.
    record.options = _plain_options(file)
    record.asked = [
        Asked(name, value, None, "")
        for name, value in record.options.items()
        if value not in (None, [], {}, "", False) and name not in _SAME_FOR_ALL
    ]


def _plain_value(value: Any) -> Any:
    """A value of an option without dataclasses: of each what differs from its defaults."""
    if isinstance(value, list):
        return [_plain_value(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {name: _plain_value(given) for name, given, default, _ in leaves(value) if given != default}
    return value


def _plain_options(file: Path) -> dict[str, Any]:
    import yaml  # type: ignore[import-untyped]

    try:
        return dict(_flat(as_mapping(yaml.safe_load(file.read_text(encoding="utf-8")))))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        found += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [(f"{prefix}{key}", value)]
    return found


def _read_json(record: Record, name: str) -> dict[str, Any]:
    file = record.path / name
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        record.problems.append(f"{name} can't be read: {first_line(error)}")
        return {}
    if not isinstance(value, dict):
        record.problems.append(f"{name} can't be read: it holds no object")
        return {}
    return value


def _read_lines(record: Record, name: str) -> list[dict[str, Any]]:
    """The lines of a file that are whole objects. The last may be cut off, since the run may be writing it."""
    file = record.path / name
    if not file.is_file():
        return []
    found, bad = [], 0
    try:
        with file.open(encoding="utf-8", errors="replace") as stream:
            for line in stream:
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError):
                    bad += line.endswith("\n") and bool(line.strip())
                    continue
                if isinstance(value, dict):
                    found.append(value)
    except OSError as error:
        record.problems.append(f"{name} can't be read: {first_line(error)}")
    if bad:
        record.problems.append(f"{name}: {bad} lines can't be read and are left out")
    return found


def as_mapping(value: Any) -> dict[str, Any]:
    """A value of a file, if it is a mapping. Else an empty one: other versions of the hub wrote other files."""
    return value if isinstance(value, dict) else {}
