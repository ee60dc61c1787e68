"""The Python API: `sft()`, `lora_sft()`, `osft()` and `run()` take keyword arguments, build a RunConfig and launch it.

Every option of the command line is a keyword argument with the last part of its name: `algo.lora_r=8` is `lora_r=8`. Workers
are separate processes: they do not use a notebook's memory, and `nproc=8` works there.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from itertools import chain, islice
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from hub.config.data import DataSource
from hub.config.schema import AlgoConfig, DataConfig, LaunchConfig, ModelConfig, TrackConfig
from hub.data.sources.memory import ArrowStream, is_in_memory, rows_in_memory
from hub.data.sources.rows import write_rows
from hub.errors import ConfigError, did_you_mean
from hub.run import Result

PARTS: dict[str, type] = {"data": DataConfig, "model": ModelConfig, "launch": LaunchConfig, "track": TrackConfig}
BY_ARGUMENT = ("path", "mix", "tool")
"""Options that are set by the arguments `model`, `data` and `track`."""

Data = str | PathLike[str] | Iterable[Any] | ArrowStream

TOP = ("output_dir", "run_name")
ALIASES = {"nproc": "nproc_per_node"}


def sft(*, model: str | PathLike[str], data: Data, **options: Any) -> Result:
    """Fine-tune all weights of a model. See `run` for the arguments. Needs the plugin hub-sft."""
    return run("sft", model=model, data=data, **options)


def lora_sft(*, model: str | PathLike[str], data: Data, **options: Any) -> Result:
    """Fine-tune a low-rank adapter (LoRA, arXiv 2106.09685) on a model. See `run`. Needs the plugin hub-lora-sft."""
    return run("lora_sft", model=model, data=data, **options)


def osft(*, model: str | PathLike[str], data: Data, **options: Any) -> Result:
    """Fine-tune in low-importance singular directions (OSFT, arXiv 2504.07097). See `run`. Needs the plugin hub-osft."""
    return run("osft", model=model, data=data, **options)


def run(algo: str, *, model: str | PathLike[str], data: Data, track: str = "none", **options: Any) -> Result:
    """Train with any installed algorithm, and wait until it ends.

    Args:
        algo: name of an algorithm (`sft`, `lora_sft`, ...) or of one of its presets (`qlora_sft`).
        model: a preset's name (`"smollm2_135m"`), a folder, or an id of the model hub.
        data: a preset's name (`"tiny"`), a file, a folder, or the id of a dataset of the model hub. Or a list of sources, each
            a `DataSource` or a dictionary with its options: `[{"path": "own.jsonl", "weight": 0.8}, ...]`. Or rows, which are
            written into `output_dir`: any iterable of dictionaries in one of the formats, a `datasets.Dataset`, the split
            train of a `DatasetDict`, a DataFrame of pandas or polars, a pyarrow Table.
        track: `none`, `tensorboard`, `wandb` or `mlflow`.
        options: any option of the algorithm, of `data.`, `model.`, `launch.` and `track.`, `output_dir` and `run_name`,
            with the names that `python -m hub show` prints, without the part before the dot.

    Returns:
        The result: path of the model, losses, run folder. `.metrics` has every logged step.

    Raises:
        TypeError: an option does not exist. The message has the nearest names.
        HubError: a value, the data, the model or the machine is not suitable. A `ConfigError` lists everything in `.problems`.
    """
    from hub.compose.compose import compose, groups
    from hub.launch.launcher import launch

    overrides = [f"algo={algo}"]
    values = _sort(algo, type(compose(*overrides).algo), options)
    presets = groups()
    named = [("model", fspath(model))]
    if isinstance(data, str | PathLike):
        named.append(("data", fspath(data)))
    elif is_in_memory(data):
        values.setdefault("data", {}).update(_in_memory(data, options))
    else:
        raise TypeError(f"data must be a name, a path, a list of sources or an iterable of rows, not {type(data).__name__}")
    for part, given in named:
        if given in presets[part] and not os.path.exists(given):
            overrides.append(f"{part}={given}")
            continue
        near = did_you_mean(given, presets[part]) if re.fullmatch(r"\w+", given) and not os.path.exists(given) else ""
        if near:
            raise ConfigError(f"{part}={given!r}: there is no such preset, file or folder.{near}")
        values.setdefault(part, {})["path"] = given
    if track != "none":
        overrides.append(f"track={track}")
    return launch(compose(*overrides, values=values))


def _in_memory(data: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `data` for a list of sources, or for rows."""
    rows = rows_in_memory(data)
    first = list(islice(rows, 1))
    is_source = first and (
        isinstance(first[0], DataSource)
        or (
            isinstance(first[0], Mapping)
            and "path" in first[0]
            and not any(isinstance(v, list | dict) for v in first[0].values())
        )
    )
    every = chain(first, rows)
    if is_source:
        return {"mix": [_source(source) for source in every]}
    folder = Path(os.path.expanduser(fspath(options.get("output_dir", "runs")))) / "data"
    return {"path": str(write_rows(every, folder, _read_columns(options)))}


def _read_columns(options: Mapping[str, Any]) -> set[str]:
    """Columns of rows that the formats or the options name."""
    from hub.data.formats.detect import read_fields

    columns = options.get("columns")
    named = {str(column) for column in columns.values()} if isinstance(columns, Mapping) else set()
    return read_fields() | named | {str(options.get("text_column"))}


def _source(given: DataSource | Mapping[str, Any]) -> dict[str, Any]:
    values = asdict(given) if isinstance(given, DataSource) else dict(given)
    return {name: fspath(value) if isinstance(value, PathLike) else value for name, value in values.items()}


def _sort(algo: str, config: type[AlgoConfig], options: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments by the section of the config that they belong to."""
    owners = {item.name: part for part, cls in PARTS.items() for item in fields(cls) if item.name not in BY_ARGUMENT}
    owners |= {item.name: "algo" for item in fields(config)}
    sorted_values: dict[str, Any] = {}
    unknown = []
    for given, value in options.items():
        name = ALIASES.get(given, given)
        if isinstance(value, PathLike):
            value = fspath(value)
        elif isinstance(value, tuple | set):
            value = list(value)
        if name in TOP:
            sorted_values[name] = value
        elif name in owners:
            sorted_values.setdefault(owners[name], {})[name] = value
        else:
            near = did_you_mean(given, [*owners, *TOP, "model", "data", "track"])
            unknown.append(f"{algo} has no option {given!r}.{near}")
    if unknown:
        raise TypeError(f"{' '.join(unknown)} python -m hub show algo={algo} lists all")
    return sorted_values
