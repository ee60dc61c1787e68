"""`--multirun`: one isolated run for each combination of swept values, and a table of the results.

Hydra's sweeper and launcher do the work, so its plugins for Optuna or submitit can be used. Each job is a run with separate
processes. All values are checked before the first run starts. A run that fails later does not stop the others.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from hub.compose.compose import VERSION_BASE, compose, hydra_session, register_schemas, sweep_combinations
from hub.compose.options import is_list_option, library_message
from hub.compose.overrides import CONFIG_NAME, choices, combinations, parse, quoted
from hub.compose.presets import COMPOSE_ERRORS, group_options
from hub.config.option import conf_dir
from hub.config.schema import RunConfig
from hub.errors import ConfigError, HubError, Interrupted
from hub.launch.launcher import launch
from hub.launch.preflight import prepare
from hub.plugins.registry import registry
from hub.run import Run

OF_SWEEP = ("output_dir", "run_name", "resume")
"""Options that apply to the whole sweep, so they can't be swept."""

HYDRA_PLUGINS = {
    "hydra/launcher": ("joblib", "ray", "rq", "submitit"),
    "hydra/sweeper": ("ax", "nevergrad", "optuna"),
}
"""Config group of Hydra -> the plugins that its project publishes as hydra-NAME-launcher and hydra-NAME-sweeper."""
NO_LOGGING = "hydra/job_logging=none"
CALLS = ("callbacks", "hydra_logging", "job_logging")
"""Sections of Hydra's own config in which a preset could name any function to call."""


_SWEEP_ON_CLUSTER = (
    "For a sweep with a job for each run type hydra/launcher=submitit_slurm, see docs/several_gpus.md, or leave --multirun out"
)


class _Stop(BaseException):
    """Ends a sweep from within a job. Hydra catches an Exception, but not a BaseException."""


def sweep(
    overrides: list[str], config_dir: str | None, show: Callable[[Path, list[dict[str, Any]], list[str]], None] | None = None
) -> int:
    """Run a sweep. Returns 0 if every run completed, else 1.

    Args:
        overrides: as typed.
        config_dir: as typed.
        show: called at the end with the folder of the sweep, a row for each run and the swept options. None: `print_table`.

    Raises:
        ConfigError: one of the values is wrong. No run has started.
        Interrupted: a signal ended the sweep.
    """
    with hydra_session(config_dir) as loader:
        parsed = parse(overrides, loader)
        swept = _check_form(loader, parsed)
        of_hydra = [str(item.input_line) for item in parsed if item.is_hydra_override()]
        options = [item for item in parsed if not item.is_hydra_override()]
        arguments = [*choices(loader, options), *_set_options(loader, options)]
    checked = sweep_combinations([str(item.input_line) for item in options], config_dir)
    # With a launcher for a cluster the jobs run elsewhere, and are checked there.
    _check_all(checked, here=not any(item.key_or_group == "hydra/launcher" for item in parsed))
    with hydra_session(config_dir) as loader:
        _check_names_no_code(loader, options, of_hydra)
    name = checked[0].run_name or f"sweep_{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    folder = Run.create(checked[0].output_dir, name).path
    register_schemas()
    failed: list[Interrupted] = []
    argv = [
        "hub",
        "--multirun",
        *arguments,
        NO_LOGGING,
        *of_hydra,
        f"hydra.sweep.dir={quoted(str(folder))}",
    ]
    argv += ["--config-dir", config_dir] if config_dir else []
    before, sys.argv = sys.argv, argv
    full_error, os.environ["HYDRA_FULL_ERROR"] = os.environ.get("HYDRA_FULL_ERROR"), "1"  # else Hydra prints, and exits
    try:
        task = partial(job, config_dir, failed)
        hydra.main(config_path=str(conf_dir()), config_name=CONFIG_NAME, version_base=VERSION_BASE)(task)()
    except _Stop:
        pass
    except COMPOSE_ERRORS as error:
        with suppress(OSError):
            folder.rmdir()
        raise ConfigError(_sweeper_problem(library_message(error), options)) from None
    finally:
        sys.argv = before
        del os.environ["HYDRA_FULL_ERROR"]
        if full_error is not None:
            os.environ["HYDRA_FULL_ERROR"] = full_error
    rows = collect(folder, swept)
    (show or print_table)(folder, rows, swept)
    if failed:
        raise failed[0]
    return 1 if any(row["status"] not in ("completed", "verified") for row in rows) else 0


def job(config_dir: str | None, stopped: list[Interrupted], node: DictConfig) -> float:
    """One run of the sweep.

    Args:
        config_dir: as on the command line.
        stopped: receives the signal that ended the run, and with it the sweep.
        node: Hydra's config. It is composed again from its overrides, so that the run is the same as outside of a sweep.

    Returns:
        The objective for a sweeper: the evaluation loss, else the training loss; NaN if the run failed.
    """
    from hydra.core.hydra_config import HydraConfig

    runtime = HydraConfig.get()
    folder, overrides = Path(runtime.runtime.output_dir), list(runtime.overrides.task)
    (folder / "overrides.json").write_text(json.dumps(overrides), encoding="utf-8")
    try:
        result = launch(compose(*overrides, config_dir=config_dir), run_path=folder)
    except Interrupted as signal:
        stopped.append(signal)
        raise _Stop from None
    except HubError as error:
        (folder / "error.txt").write_text(f"{error}\n", encoding="utf-8")
        print(f"hub: run {folder.name} failed: {error}", file=sys.stderr, flush=True)
        return float("nan")
    loss = result.eval_loss if result.eval_loss is not None else result.train_loss
    return float("nan") if loss is None else loss


def _check_form(loader: ConfigLoaderImpl, parsed: list[Override]) -> list[str]:
    """The names of the swept options.

    Raises:
        ConfigError: nothing is swept, or an option that can't be.
    """
    swept = [item for item in parsed if item.is_sweep_override()]
    problems = [
        f"{item.key_or_group} can't be swept: it applies to the whole sweep" for item in swept if item.key_or_group in OF_SWEEP
    ]
    problems += _plugin_problems(loader, parsed)
    if any(item.key_or_group == "resume" for item in parsed):
        problems.append("resume continues a single run. Leave it or --multirun out")
    problems += [
        f"{item.key_or_group}: the folder of a sweep is named by output_dir=FOLDER and run_name=NAME"
        for item in parsed
        if item.key_or_group in ("hydra.sweep.dir", "hydra.sweep.subdir")
    ]
    for item in swept:
        name = item.key_or_group
        values = list(item.sweep_string_iterator()) if item.is_discrete_sweep() and "." not in name else []
        if "null" in values:
            rest = ",".join(value for value in values if value != "null")
            problems.append(f"{name}: null can't be one of several choices. Type {name}={rest}")
    if not swept and not any(item.is_hydra_override() for item in parsed):
        problems.append("--multirun but no option has several values. Type e.g. algo.learning_rate=1e-4,2e-4")
    if problems:
        raise ConfigError(problems)
    return [item.key_or_group for item in swept]


def _plugin_problems(loader: ConfigLoaderImpl, parsed: list[Override]) -> Iterator[str]:
    """One line for each launcher or sweeper of Hydra that is not installed."""
    chosen = {item.key_or_group: str(item.value()) for item in parsed if item.key_or_group in HYDRA_PLUGINS}
    for group, name in chosen.items():
        kind, installed = group.rpartition("/")[2], group_options(loader, group)
        if name not in installed:
            first = name.partition("_")[0]  # submitit_slurm is of hydra-submitit-launcher
            package = f" Type pip install hydra-{first}-{kind}" if first in HYDRA_PLUGINS[group] else ""
            yield f"{group}={name}: Hydra has no such {kind} here. Installed: {', '.join(installed)}.{package}"


def _sweeper_problem(message: str, parsed: list[Override]) -> str:
    """What Hydra's sweeper said, in our words if it takes no ranges."""
    names = [f"{item.key_or_group}={item.get_value_string()}" for item in parsed if item.is_interval_sweep()]
    if not names or "does not support sweep type" not in message:
        return message
    return f"{' '.join(names)}: Hydra's own sweeper takes lists only. List the values, or type hydra/sweeper=optuna"


def _check_names_no_code(loader: ConfigLoaderImpl, options: list[Override], of_hydra: list[str]) -> None:
    """Check that only installed launchers and sweepers change what Hydra calls.

    Raises:
        ConfigError: a preset or an override sets a section of Hydra's config that names code.
    """

    def parts(overrides: list[str]) -> dict[str, object]:
        whole = loader.load_configuration(CONFIG_NAME, [*overrides, NO_LOGGING], run_mode=RunMode.MULTIRUN)
        return {name: OmegaConf.to_container(whole.hydra[name]) for name in CALLS}

    try:
        plain = parts([])
        for items in combinations(options):
            changed_parts = parts([*choices(loader, items), *of_hydra])
            if changed := [f"hydra.{name}" for name in CALLS if changed_parts[name] != plain[name]]:
                raise ConfigError(f"{', '.join(changed)}: code can't be named in a config. Take it out of the preset")
    except COMPOSE_ERRORS as error:
        raise ConfigError(library_message(error)) from None


def _check_all(configs: list[RunConfig], here: bool) -> None:
    problems: list[str] = []
    for cfg in configs:
        if cfg.launch.cluster is not None:
            problems.append(f"launch={cfg.launch.cluster} is for a single run. {_SWEEP_ON_CLUSTER}")
            continue
        try:
            prepare(cfg, here)
        except HubError as error:
            problems += str(error).splitlines()
    if problems:
        raise ConfigError(dict.fromkeys(problems))


def _set_options(loader: ConfigLoaderImpl, parsed: list[Override]) -> list[str]:
    """The overrides that choose no preset, as Hydra takes them: a single value of a list option in brackets."""
    found = []
    for item in parsed:
        name, value = item.key_or_group, item.get_value_string()
        if loader.repository.group_exists(name):
            continue
        if is_list_option(name, registry().algorithms) and not item.is_interval_sweep():
            values = item.sweep_string_iterator() if item.is_sweep_override() else [value]
            value = ",".join(one if one.startswith("[") else f"[{_as_text(one)}]" for one in values)
        found.append(f"{name}={value}")
    return found


def _as_text(value: str) -> str:
    """A single value of a list as Hydra takes it. Quoted, `1e3` stays the text that was typed."""
    return value if value[:1] in ("'", '"', "{") else quoted(value)


def collect(folder: Path, swept: list[str]) -> list[dict[str, Any]]:
    """One row for each run folder of the sweep, in order."""
    rows = []
    for file in sorted(folder.glob("*/overrides.json"), key=lambda f: (len(f.parent.name), f.parent.name)):
        values = dict(text.lstrip("+").split("=", 1) for text in json.loads(file.read_text(encoding="utf-8")) if "=" in text)
        result_file = file.parent / "result.json"
        result = json.loads(result_file.read_text(encoding="utf-8")) if result_file.is_file() else {"status": "failed"}
        rows.append({"run": file.parent.name, **{name: values.get(name, "") for name in swept}, **result})
    return rows


def print_table(folder: Path, rows: list[dict[str, Any]], swept: list[str]) -> None:
    """Print the results. The lowest evaluation loss, else training loss, is marked."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    columns = ["run", *swept, "status", "train_loss", "eval_loss", "tokens_per_second"]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    measure = "eval_loss" if any(row.get("eval_loss") is not None for row in rows) else "train_loss"
    best = min((row[measure] for row in rows if row.get(measure) is not None), default=None)
    for row in rows:
        is_best = best is not None and row.get(measure) == best
        cells = [_cell(row.get(column)) for column in columns]
        cells[0] += " *" if is_best else ""
        table.add_row(*(Text(cell) for cell in cells), style="bold green" if is_best else None)
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(table)
    if best is not None:
        print(f"* lowest {measure}")
    print(f"runs: {folder}", flush=True)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return (f"{value:,.0f}" if value >= 100 else f"{value:.5g}") if isinstance(value, float) else str(value)
