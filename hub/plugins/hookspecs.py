"""Every hook of the hub. A plugin implements those it needs with `@hub.hookimpl`; docs/plugins.md explains each.

The first four are called before the command line is read: they import the standard library and `hub` only.
The others run on rank 0 of a training run.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from hub.config.schema import RunConfig
    from hub.plugins.offers import Algorithm, Backend, DataFormat
    from hub.run import Result, Run

hookspec = pluggy.HookspecMarker("hub")
hookimpl = pluggy.HookimplMarker("hub")


@hookspec
def hub_algorithms() -> Iterable["Algorithm"]:  # type: ignore[empty-body]
    """Algorithms that this plugin adds."""


@hookspec
def hub_backends() -> Iterable["Backend"]:  # type: ignore[empty-body]
    """Backends that this plugin adds, for its own or for another plugin's algorithms."""


@hookspec
def hub_data_formats() -> Iterable["DataFormat"]:  # type: ignore[empty-body]
    """Formats of rows that this plugin adds to `data.format`."""


@hookspec
def hub_config_dir() -> Path:  # type: ignore[empty-body]
    """Folder with config groups (algo/, model/, experiment/, ...), searched after the hub's own conf/."""


@hookspec
def hub_run_start(cfg: "RunConfig", run: "Run") -> None:
    """Training is about to begin: the model is loaded, the data is ready."""


@hookspec
def hub_log(run: "Run", step: int, metrics: Mapping[str, float]) -> None:
    """A line has been written to metrics.jsonl."""


@hookspec
def hub_checkpoint(run: "Run", step: int, path: Path) -> None:
    """A checkpoint is complete on disk."""


@hookspec
def hub_run_end(run: "Run", result: "Result | None", error: BaseException | None) -> None:
    """The run is over: with its result, or with the error that ended it."""
