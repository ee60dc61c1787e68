"""`--multirun`: one isolated run for each combination of swept values, and a table of the results at the end.

Hydra's sweeper and launcher do the work (so its plugins, Optuna or submitit, fit in); each job is a run with processes of
its own. All values are checked before the first run begins.
"""

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import CompactHydraException
from omegaconf import DictConfig

from hub.compose import CONFIG_NAME, VERSION_BASE, compose, from_node, parse, register_schemas, sweep_samples
from hub.errors import ConfigError, HubError
from hub.launch import launch, prepare
from hub.plugins import conf_dir


def sweep(overrides: list[str], config_dir: str | None) -> int:
    """Run a sweep. Returns 0 when every run completed.

    Raises:
        ConfigError: something is wrong with one of the values; no run has begun.
    """
    for sample in sweep_samples(overrides):
        prepare(compose(*sample, config_dir=config_dir))
    swept = [item.key_or_group for item in parse(overrides) if item.is_sweep_override()]
    if not swept:
        raise ConfigError("--multirun but no option has several values. Type e.g. algo.learning_rate=1e-4,2e-4")
    parent = Path(compose(*sweep_samples(overrides)[0], config_dir=config_dir).output_dir).expanduser().absolute()
    folder = parent / f"sweep_{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    register_schemas()
    argv = ["hub", "--multirun", *overrides, f"hydra.sweep.dir={folder}"]
    if config_dir:
        argv += ["--config-dir", config_dir]
    before, sys.argv = sys.argv, argv
    failed = False
    try:
        hydra.main(config_path=str(conf_dir()), config_name=CONFIG_NAME, version_base=VERSION_BASE)(job)()
    except SystemExit as stop:
        failed = bool(stop.code)
    finally:
        sys.argv = before
    rows = collect(folder, swept)
    print_table(rows, swept)
    print(f"runs: {folder}")
    return 1 if failed or any(row["status"] != "completed" for row in rows) else 0


def job(node: DictConfig) -> float | None:
    """One run of the sweep. Returns what a sweeper may minimise: the held-out loss, else the training loss."""
    from hydra.core.hydra_config import HydraConfig

    folder = Path(HydraConfig.get().runtime.output_dir)
    (folder / "overrides.json").write_text(json.dumps(list(HydraConfig.get().overrides.task)), encoding="utf-8")
    try:
        result = launch(from_node(node), run_path=folder)
    except HubError as error:
        (folder / "error.txt").write_text(f"{error}\n", encoding="utf-8")
        raise CompactHydraException(str(error)) from None
    return result.eval_loss if result.eval_loss is not None else result.train_loss


def collect(folder: Path, swept: list[str]) -> list[dict[str, Any]]:
    """One row for each run folder of the sweep, in order."""
    rows = []
    for file in sorted(folder.glob("*/overrides.json"), key=lambda f: (len(f.parent.name), f.parent.name)):
        values = dict(text.split("=", 1) for text in json.loads(file.read_text(encoding="utf-8")) if "=" in text)
        result_file = file.parent / "result.json"
        result = json.loads(result_file.read_text(encoding="utf-8")) if result_file.is_file() else {"status": "failed"}
        rows.append({"run": file.parent.name, **{name: values.get(name, "") for name in swept}, **result})
    return rows


def print_table(rows: list[dict[str, Any]], swept: list[str]) -> None:
    """The results, best held-out (else training) loss marked."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="sweep")
    columns = ["run", *swept, "status", "train_loss", "eval_loss", "tokens_per_second"]
    for column in columns:
        table.add_column(column, overflow="fold")
    measure = "eval_loss" if any(row.get("eval_loss") is not None for row in rows) else "train_loss"
    best = min((row[measure] for row in rows if row.get(measure) is not None), default=None)
    for row in rows:
        cells = [_cell(row.get(column)) for column in columns]
        table.add_row(*cells, style="bold green" if best is not None and row.get(measure) == best else None)
    Console().print(table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
