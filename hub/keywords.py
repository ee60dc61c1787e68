"""Keyword arguments of the Python calls, sorted: presets that they choose, sections of the config, options of a verb."""

import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, fields
from itertools import chain, islice
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from hub.compose.options import ELSEWHERE
from hub.config.data import DataSource
from hub.config.evaluate import EvaluateConfig
from hub.config.export import ExportConfig
from hub.config.finished import FinishedVerb
from hub.config.generate import GenerateConfig
from hub.config.paths import file_kind, is_hub_id
from hub.config.plan import PlanConfig
from hub.config.schema import PARTS as SECTIONS
from hub.config.schema import AlgoConfig, DataConfig, LaunchConfig, ModelConfig, RunConfig, TrackConfig
from hub.data.sources.memory import ArrowStream, is_in_memory, rows_in_memory
from hub.data.sources.rows import write_rows
from hub.errors import ConfigError, did_you_mean

PARTS: dict[str, type] = {"data": DataConfig, "model": ModelConfig, "launch": LaunchConfig, "track": TrackConfig}
NESTED: dict[str, type] = {
    "generate": GenerateConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
    "plan": PlanConfig,
}
"""Sections whose options are one keyword of a training call, a dictionary: `evaluate={"tasks": ["hellaswag"]}`. In a verb that
reads the section they are keywords of their own."""
BY_ARGUMENT = ("path", "mix", "tool")
"""Options that are set by the arguments `model`, `data` and `track`."""

Data = str | PathLike[str] | Iterable[Any] | ArrowStream

TOP = tuple(item.name for item in fields(RunConfig) if item.name not in SECTIONS)
ALIASES = {"nproc": "nproc_per_node"}
OF_ARGUMENTS = {"model.path": "model", "data.path": "data", "data.mix": "data", "track.tool": "track", "track": "track"}
"""Option that is an argument of its own -> that argument."""


def arguments(
    algo: str | None, model: str | PathLike[str] | None, data: Data | None, track: str | None, options: dict[str, Any]
) -> tuple[list[str], dict[str, Any]]:
    """The arguments of a call as overrides that choose presets, and as values of options.

    Raises:
        TypeError: an option does not exist.
        ConfigError: there is no such algorithm, model or data.
    """
    from hub.compose.compose import compose, groups
    from hub.plugins.registry import registry

    if not isinstance(model, str | PathLike | None):
        raise TypeError(f"model must be a preset's name, a folder or an id of the model hub, not {type(model).__name__}")
    presets = groups()
    if algo is not None and algo not in presets["algo"]:
        plugins, near = registry(), did_you_mean(algo, presets["algo"])
        if plugins.not_installed(algo) or not near:
            raise ConfigError(plugins.no_algorithm(algo))
        raise ConfigError(f"algo={algo}: there is no such algorithm.{near}{plugins.left_out()}")
    overrides = [] if algo is None else [f"algo={algo}"]
    values = _sort(algo, type(compose(*overrides).algo), options)
    named = [] if model is None else [("model", fspath(model))]
    if isinstance(data, str | PathLike):
        named.append(("data", fspath(data)))
    elif data is not None and is_in_memory(data):
        values.setdefault("data", {}).update(_in_memory(data, options))
    elif data is not None:
        raise TypeError(f"data must be a name, a path, a list of sources or an iterable of rows, not {type(data).__name__}")
    for part, given in named:
        if given in presets[part] and not os.path.exists(given):
            overrides.append(f"{part}={given}")
            continue
        near = did_you_mean(given, presets[part]) if re.fullmatch(r"\w+", given) and not os.path.exists(given) else ""
        if near:
            raise ConfigError(f"{part}={given!r}: there is no such preset, file or folder.{near}")
        values.setdefault(part, {})["path"] = given
    if track not in (None, "none"):
        overrides.append(f"track={track}")
    return overrides, values


def section_of_keyword(config: type[AlgoConfig]) -> dict[str, str]:
    """Keyword of an option -> the section of the config that it belongs to. Empty: the run itself."""
    owners = {item.name: part for part, cls in PARTS.items() for item in fields(cls) if item.name not in BY_ARGUMENT}
    return owners | {item.name: "algo" for item in fields(config)} | dict.fromkeys((*TOP, *NESTED), "")


def _in_memory(data: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `data` for a list of sources, or for rows."""
    if isinstance(data, Mapping) and isinstance(data.get("path"), str | PathLike):
        data = [data]
    rows, read = rows_in_memory(data), _read_columns(options)
    first = list(islice(rows, 1))
    every = chain(first, rows)
    if first and isinstance(data, list | tuple) and _is_source(first[0], read):
        return {"mix": [_source(source) for source in every]}
    folder = Path(os.path.expanduser(fspath(options.get("output_dir", "runs")))) / "data"
    return {"path": str(write_rows(every, folder, read, skip_bad=options.get("on_bad_row") == "skip"))}


def _is_source(first: object, read: set[str]) -> bool:
    """Whether the first item of a list is a source: a path, or options with a path. A row may have a path beside its text."""
    if isinstance(first, str):
        return bool(file_kind(Path(first))) or os.path.exists(os.path.expanduser(first)) or is_hub_id(first)
    if not isinstance(first, Mapping):
        return isinstance(first, DataSource | PathLike)
    plain = not any(isinstance(value, list | dict) for name, value in first.items() if name != "columns")
    return "path" in first and plain and not read.intersection(first)


def _read_columns(options: Mapping[str, Any]) -> set[str]:
    """Columns of rows that the formats or the options name."""
    from hub.data.formats.detect import read_fields

    columns = options.get("columns")
    named = {str(column) for column in columns.values()} if isinstance(columns, Mapping) else set()
    return read_fields() | named | {str(options.get("text_column"))}


def _source(given: DataSource | Mapping[str, Any] | str | PathLike[str]) -> dict[str, Any]:
    if isinstance(given, str | PathLike):
        return {"path": fspath(given)}
    values = asdict(given) if isinstance(given, DataSource) else dict(given)
    return {name: fspath(value) if isinstance(value, PathLike) else value for name, value in values.items()}


def _sort(algo: str | None, config: type[AlgoConfig], options: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments by the section of the config that they belong to."""
    owners = section_of_keyword(config)
    sorted_values: dict[str, Any] = {}
    unknown = []
    for given, value in options.items():
        name = ALIASES.get(given, given)
        if isinstance(value, PathLike):
            value = fspath(value)
        elif isinstance(value, tuple | set):
            value = list(value)
        if name in NESTED and not isinstance(value, Mapping):
            raise TypeError(f"{name} must be a dictionary of options, e.g. {name}={{{fields(NESTED[name])[0].name!r}: ...}}")
        if owners.get(name) == "":
            sorted_values[name] = value
        elif name in owners:
            sorted_values.setdefault(owners[name], {})[name] = value
        else:
            unknown.append(f"{algo or 'a run without algorithm'} has no option {given!r}.{_hint(given, owners)}")
    if unknown:
        raise TypeError(f"{' '.join(unknown)} hub.show({repr(algo) if algo else ''}) lists all")
    return sorted_values


def _hint(given: str, owners: Collection[str]) -> str:
    """A sentence on what an unknown keyword may stand for. Empty: nothing comes near."""
    from hub.plugins.registry import registry

    elsewhere = ELSEWHERE.get(given, given)
    here = OF_ARGUMENTS.get(elsewhere, elsewhere.rpartition(".")[2])
    if here == "path":
        return " Here it is data, or model."
    if here != given and here in (*owners, *OF_ARGUMENTS.values()):
        return f" Here it is {here}."
    algorithms = registry().algorithms.items()
    having = [name for name, algorithm in algorithms if here in {item.name for item in fields(algorithm.config)}]
    if having:
        return f" {here} is an option of {' and '.join(sorted(having))}."
    return did_you_mean(given, [*owners, "model", "data", "track"])


def finished_arguments(
    verb: FinishedVerb,
    run: str | PathLike[str] | None,
    model: str | PathLike[str] | None,
    data: Data | None,
    options: dict[str, Any],
) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
    """The arguments of a call on a finished model: choices of presets, values of the config, options of the verb."""
    own_names = {item.name for item in fields(verb.options)}
    own = {name: value for name, value in options.items() if name in own_names}
    if run is not None:
        own["run"] = fspath(run)
    sections = {part: cls for part, cls in (NESTED | PARTS).items() if part in verb.sections}
    if verb.own_section is not None:
        sections[verb.own_section] = sections.pop(verb.own_section)  # its names win: dtype is that of the export
    owners = {item.name: part for part, cls in sections.items() for item in fields(cls) if item.name not in BY_ARGUMENT}
    rest: dict[str, Any] = {}
    nested: dict[str, Any] = {}
    presets = {"generate"} & set(verb.sections)
    chosen = [f"{name}={options[name]}" for name in presets if isinstance(options.get(name), str)]
    for name, value in options.items():
        if name in own_names or (name in presets and isinstance(value, str)):
            continue
        if name in NESTED and name in verb.sections:
            nested.setdefault(name, {}).update(value)
        elif owners.get(name) in NESTED:
            nested.setdefault(owners[name], {})[name] = value
        elif name in owners or name == "output_dir":
            rest[name] = value
        else:
            near = did_you_mean(name, [*own_names, *owners, "model", "data", "run"])
            raise TypeError(f"{verb.name}() got an unexpected keyword argument {name!r}.{near}")
    overrides, values = arguments(None, model, data, "none", rest)
    return [*overrides, *chosen], values | nested, own
