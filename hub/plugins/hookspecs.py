"""The hooks of the hub. A plugin implements those it needs with `@hub.hookimpl`. docs/plugins.md explains each.

The first six are called before the command line is parsed: import the standard library and `hub` only.
The others are called on rank 0 of a training run.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from hub.config.schema import RunConfig
    from hub.plugins.offers import Algorithm, Backend, DataFormat, Exporter, Metric
    from hub.result import Result
    from hub.run import Run

hookspec = pluggy.HookspecMarker("hub")
hookimpl = pluggy.HookimplMarker("hub")


@hookspec
def hub_algorithms() -> Iterable["Algorithm"]:  # type: ignore[empty-body]
    """List the algorithms that this plugin adds."""


@hookspec
def hub_backends() -> Iterable["Backend"]:  # type: ignore[empty-body]
    """List the backends that this plugin adds, for its own algorithms or for those of other plugins."""


@hookspec
def hub_data_formats() -> Iterable["DataFormat"]:  # type: ignore[empty-body]
    """List the data formats that this plugin adds to `data.format`."""


@hookspec
def hub_metrics() -> Iterable["Metric"]:  # type: ignore[empty-body]
    """List the metrics of generated answers that this plugin adds to `evaluate.metrics`."""


@hookspec
def hub_exporters() -> Iterable["Exporter"]:  # type: ignore[empty-body]
    """List the exporters that this plugin adds to `export.to`."""


@hookspec
def hub_config_dir() -> Path:  # type: ignore[empty-body]
    """Return the folder with config groups (algo/, model/, experiment/, ...). It is searched after the hub's own conf/."""


@hookspec
def hub_run_start(cfg: "RunConfig", run: "Run") -> None:
    """Called before the first step, when model and data are loaded."""


@hookspec
def hub_log(run: "Run", step: int, metrics: Mapping[str, float]) -> None:
    """Called after a line was written to metrics.jsonl."""


@hookspec
def hub_checkpoint(run: "Run", step: int, path: Path) -> None:
    """Called when a checkpoint is complete on disk."""


@hookspec
def hub_run_end(run: "Run", result: "Result | None", error: BaseException | None) -> None:
    """Called at the end of a run, with its result or with the error that ended it."""
