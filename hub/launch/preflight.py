"""Checks before anything is started: does the config fit this machine and this data?

All problems are reported at once. Nothing here imports torch.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from hub.config.bounds import use_bounds
from hub.config.option import AUTO, conf_dir, field_problems
from hub.config.paths import is_pattern
from hub.config.rules import format_problems
from hub.config.schema import PARTS, AlgoConfig, RunConfig
from hub.data.check import check_rows
from hub.data.formats.columns import column_problems
from hub.data.formats.detect import read_fields
from hub.data.formats.roles import Wanted
from hub.data.samples.mix import eval_source_of, make_mix, num_held_out, sources_of
from hub.data.sources.files import path_problem
from hub.errors import ConfigError, DataError, HubError, ModelError, PluginError, did_you_mean
from hub.launch.machine import machine_problems, missing_packages
from hub.launch.second_stage import with_stage
from hub.launch.trackers import tracker_problems
from hub.models.encoders import refuse_encoders
from hub.models.storage import storage_problems, with_storage
from hub.models.tiny import FAMILIES, tiny_data_path
from hub.plugins.registry import ResolvedRun, data_format_names, resolve
from hub.system.gpus import has_no_gpu, num_visible_gpus
from hub.tasks.evaluate.checks import problems_in_training
from hub.tasks.export.checks import problems_of as export_problems
from hub.train.batch.split import auto_batch_size, num_steps
from hub.train.schedule import schedule_problems

TINY = "tiny:"
LOOK, STREAM_LOOK = 20_000, 1_000
"""Rows of each source that are checked before a run starts: from files, and from streams."""


def prepare(cfg: RunConfig, here: bool = True) -> ResolvedRun:
    """Check a config against this machine and fill in what `auto` means for the launch.

    Args:
        cfg: the config to run.
        here: whether this is the machine that will train. If not, its GPUs and ports are not checked.

    Raises:
        HubError: of the option, backend or data that is wrong; a ConfigError with all lines if there are several.
    """
    use_bounds(cfg.launch)
    cfg = with_stage(cfg)
    errors: list[HubError] = []
    try:
        cfg = _with_storage(cfg)
    except HubError as error:
        errors.append(error)
    errors += [ConfigError(line) for line in cfg.problems(data_formats=data_format_names())]
    if cfg.chosen_task.takes_steps:
        errors += [ConfigError(line) for line in problems_in_training(cfg)]
        errors += [ConfigError(line) for line in export_problems(cfg, needs_target=False)]
    in_bounds = {name: not list(field_problems(getattr(cfg, name), name)) for name in PARTS}
    resolved = None
    if type(cfg.algo) is not AlgoConfig:
        try:
            resolved = resolve(cfg, check_needs=cfg.launch.python is None)
            errors += [ConfigError(line) for line in resolved.backend.problems(cfg)] if all(in_bounds.values()) else []
            errors += [ConfigError(line) for line in storage_problems(cfg, resolved.algorithm.name)]
            errors += [ConfigError(line) for line in _gpu_problem(resolved)] if here else []
            cfg = replace(cfg, algo=replace(cfg.algo, backend=resolved.backend.name))
            if not isinstance(resolved.backend.build, str):
                cfg = _in_this_process(cfg, resolved.algorithm.name)
        except (ConfigError, PluginError) as error:
            errors.append(error)
    num_rows = None
    try:
        _check_tiny_model(cfg)
    except ModelError as error:
        errors.append(error)
    try:
        cfg = with_absolute_paths(cfg)
        num_rows = check_data(cfg, resolved) if in_bounds["data"] else None
    except HubError as error:
        errors.append(error)
    cfg = _with_dtype(cfg)
    if in_bounds["launch"]:
        cfg = _with_num_processes(cfg)
        errors += [ConfigError(line) for line in machine_problems(cfg)] if here else []
    if cfg.launch.python is None:
        errors += [ConfigError(line) for line in (*missing_packages(cfg), *tracker_problems(cfg))]
    if num_rows is not None and in_bounds["algo"]:
        errors += [ConfigError(line) for line in _schedule_problems(cfg, num_rows)]
    _raise(errors)
    assert resolved is not None
    return replace(resolved, config=cfg)


def _raise(errors: list[HubError]) -> None:
    """Raise a single error as it is, several as one."""
    if len(errors) > 1:
        raise ConfigError(dict.fromkeys(line for error in errors for line in str(error).splitlines()))
    if errors:
        raise errors[0]


def _gpu_problem(resolved: ResolvedRun) -> Iterator[str]:
    line = resolved.backend.needs_gpu(resolved.config)
    if line and has_no_gpu():
        yield line


def _with_storage(cfg: RunConfig) -> RunConfig:
    """With the quantization of the weights, if they are in a local folder. For the model hub see `set_up`.

    Raises:
        HubError: the quantization is not what was asked for, or the model is an encoder.
    """
    folder = Path(os.path.expanduser(cfg.model.path))
    if not cfg.model.path or not os.path.isfile(folder / "config.json"):
        return cfg
    refuse_encoders(folder, f"model.path={cfg.model.path}")
    return with_storage(cfg, folder)


def _with_dtype(cfg: RunConfig) -> RunConfig:
    """With the type of the arithmetic, if the task decides it: bfloat16 would hide what a comparison of gradients looks for."""
    if cfg.chosen_task.compares_gradients and cfg.model.dtype == AUTO:
        return replace(cfg, model=replace(cfg.model, dtype="float32"))
    return cfg


def _in_this_process(cfg: RunConfig, algorithm: str) -> RunConfig:
    """With `launch.mode=inline`, for an algorithm that no other process can import.

    Raises:
        ConfigError: other processes were asked for.
    """
    launch = cfg.launch
    if launch.mode == "process" or launch.nproc_per_node not in (AUTO, 1) or launch.nnodes > 1 or launch.python:
        raise ConfigError(
            f"algo={algorithm} is defined in this process, and no other process can import it. Leave launch.mode, "
            "launch.nproc_per_node, launch.nnodes and launch.python out, or put it into a plugin (docs/plugins.md)"
        )
    return replace(cfg, launch=replace(launch, mode="inline"))


def _with_num_processes(cfg: RunConfig) -> RunConfig:
    """With the number of processes on this machine."""
    if cfg.launch.mode == "inline" or cfg.launch.strategy == "split":
        num = 1
    elif cfg.launch.nproc_per_node == AUTO:
        num = num_visible_gpus() or 1
    else:
        num = int(cfg.launch.nproc_per_node)
    return replace(cfg, launch=replace(cfg.launch, nproc_per_node=num))


def prepare_data(cfg: RunConfig) -> RunConfig:
    """Check the sections `data` and `model` of a config only, and make their paths absolute.

    Raises:
        HubError: an option of these, or a path, is wrong.
    """
    refuse_resume(cfg, "inspects data")
    use_bounds(cfg.launch)
    cfg = with_stage(replace(cfg, algo=AlgoConfig()))
    if problems := cfg.problems({"data", "model"}, data_format_names()):
        raise ConfigError(problems)
    _check_tiny_model(cfg)
    cfg = with_absolute_paths(cfg)
    check_paths(cfg)
    return cfg


def refuse_resume(cfg: RunConfig, does: str) -> None:
    """Refuse `resume`, for what reads options only.

    Args:
        cfg: the config.
        does: what is done instead of a run.

    Raises:
        ConfigError: `resume` is set.
    """
    if cfg.resume:
        names = {"latest": "latest", "auto": cfg.run_name or "RUN"}
        run = os.path.join(cfg.output_dir, names[cfg.resume]) if cfg.resume in names else cfg.resume
        raise ConfigError(f"resume={cfg.resume}: this {does}, and resumes no run. For the options of a run type {run}/run.yaml")


def with_absolute_paths(cfg: RunConfig) -> RunConfig:
    """Make local paths absolute, since workers may run in another folder, and make a file of tiny data.

    The algorithm's own format takes the place of `data.format=auto`.
    """

    def full(path: Any, option: str = "") -> Any:
        if option and path and path.startswith(TINY):
            return str(tiny_data_path(path.removeprefix(TINY), option))
        local = Path(os.path.expanduser(path)) if path else None
        if local is not None and option and is_pattern(path) and not os.path.exists(local):
            return os.path.abspath(local)
        if local is None or not os.path.exists(local):
            return path
        # Without links, since runs/latest will point to the new run. A file keeps its name: the ending decides how it is read.
        return os.path.realpath(local) if os.path.isdir(local) else str(Path(os.path.realpath(local.parent), local.name))

    data, model, launch = cfg.data, cfg.model, cfg.launch
    return replace(
        cfg,
        algo=cfg.algo.with_paths(full),
        data=replace(
            data,
            path=full(data.path, "data.path"),
            mix=[replace(source, path=full(source.path, f"data.mix[{i}].path")) for i, source in enumerate(data.mix)],
            eval_path=full(data.eval_path, "data.eval_path"),
            template=full(data.template),
            date=date.today().isoformat() if data.date == AUTO else data.date,
            format=cfg.algo.data_format or AUTO if data.format == AUTO else data.format,
        ),
        launch=replace(launch, deepspeed_config=full(launch.deepspeed_config), spare_dir=full(launch.spare_dir)),
        model=replace(model, path=model.path if model.path.startswith(TINY) else full(model.path), adapter=full(model.adapter)),
        output_dir=str(Path(os.path.expanduser(cfg.output_dir)).absolute()),
    )


def _check_tiny_model(cfg: RunConfig) -> None:
    family = cfg.model.path.removeprefix(TINY)
    if cfg.model.path.startswith(TINY) and family not in FAMILIES:
        near = did_you_mean(family, FAMILIES) or f" Allowed: {', '.join(FAMILIES)}"
        raise ModelError(f"model.path={cfg.model.path}: there is no tiny model of this family.{near}")


def check_paths(cfg: RunConfig) -> None:
    """Check that there is data at each path.

    Raises:
        DataError: one line for each path without data.
    """
    data = cfg.data
    named = [("data.path", data.path, data.split), ("data.eval_path", data.eval_path or "", data.eval_split)]
    named += [(f"data.mix[{number}].path", source.path, source.split) for number, source in enumerate(data.mix)]
    known = read_fields()
    wrong = list(column_problems(data.columns, "data.columns", known))
    for number, source in enumerate(data.mix):
        wrong += column_problems(source.columns, f"data.mix[{number}].columns", known)
    if wrong:
        raise DataError("\n".join(wrong))
    missing = [
        problem
        for option, path, split in named
        if path and (problem := _other_place(option, path) or path_problem(option, path, split))
    ]
    if missing:
        raise DataError("\n".join(missing))


def _other_place(option: str, path: str) -> str | None:
    """The error for the name of a preset or an address in place of a path. None: it is neither."""
    if "://" in path:
        return f"{option}={path}: addresses are not read. Download it and name the file, or type ORG/NAME of the model hub"
    is_preset = path.isidentifier() and not os.path.exists(path) and os.path.isfile(conf_dir() / "data" / f"{path}.yaml")
    if option == "data.path" and is_preset:
        return f"{option}={path}: there is no such file or folder. For the preset of this name type data={path}"
    return None


def _wanted(cfg: RunConfig, resolved: ResolvedRun | None) -> Wanted | None:
    """The samples that a row may have. None: only workers can tell."""
    if resolved is None or not (rows := tuple(resolved.backend.rows(cfg))):
        return None
    return Wanted(resolved.algorithm.name, rows)


def check_data(cfg: RunConfig, resolved: ResolvedRun | None) -> int | None:
    """Check the first rows of all data.

    Args:
        cfg: the run.
        resolved: it and its algorithm. None: this is not known.

    Returns:
        The number of samples in a pass if no row is too long. None: it is not known.

    Raises:
        DataError: one line for each path without data, or what is wrong with a row.
    """
    check_paths(cfg)
    wanted = _wanted(cfg, resolved)
    if any(format_problems(cfg.data, data_format_names())):
        return None
    if evaluation := eval_source_of(cfg.data):
        check_rows(evaluation, cfg.data, LOOK, wanted)
    sources = [source for source in sources_of(cfg.data) if source.path]
    sizes = []
    for source in sources:
        num_rows, complete = check_rows(source, cfg.data, STREAM_LOOK if cfg.data.streaming else LOOK, wanted)
        if num_rows is not None and complete and not cfg.data.streaming:
            sizes.append(num_rows - num_held_out(num_rows, cfg.data.eval_fraction))
    if not sources or len(sizes) < len(sources) or any(cfg.data_problems(data_format_names())):
        return None
    return make_mix(sources, sizes).per_pass


def _schedule_problems(cfg: RunConfig, num_train: int) -> Iterator[str]:
    """Check that the schedule fits the run, now that the number of rows is known. The config checks it against max_steps."""
    if cfg.algo.max_steps is not None:
        return
    batch = cfg.algo.effective_batch_size
    batch = auto_batch_size(num_train) if batch == AUTO else int(batch)
    total = num_steps(num_train, batch, cfg.algo.num_epochs, None)
    yield from schedule_problems(cfg.algo, total, f": {num_train} rows in batches of {batch} are {total} steps")
