"""The experiment tracker of a run (`track.tool`): logs metrics during training and the final status.

Only rank 0 logs. A tracker that can't be started is an error. One that fails later is turned off, and training continues:
metrics.jsonl has everything. A resumed run continues its run in the tracker.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from typing import Any

from accelerate import Accelerator

from hub.config.schema import RunConfig
from hub.errors import ConfigError, one_line
from hub.run import Run
from hub.secrets import without_secrets
from hub.train.trackers import TOOLS, End

_WHILE_OPENING = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
"""Replaces mlflow's own 7 retries, which take 4 minutes, and its timeout of 120 s. Restored afterwards, so that a run
survives a restart of the server."""

_NOWHERE = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # never closed: libraries keep the stdout of their start
_NOT_IN_A_NAME = re.compile(r"[^\w.\- ]")
"""mlflow refuses metric names with other characters; the name of a data source may contain any."""

Scalar = int | float | str | bool
"""Value of an option, as trackers accept it."""


class Tracking:
    """The tracker of one run, in one process."""

    def __init__(self, cfg: RunConfig, run: Run, accelerator: Accelerator, algorithm: str) -> None:
        self.cfg, self.run, self.accelerator, self.algorithm = cfg, run, accelerator, algorithm
        self.tool = cfg.track.tool
        self.is_on = False

    def start(self) -> None:
        """Open a run in the tracker, or reopen that of the resumed run, and store the options.

        Raises:
            ConfigError: the tracker can't be started.
        """
        if self.tool == "none" or not self.run.is_main:
            return
        # The hub reports the location itself. The libraries read these variables when they are imported.
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("COMET_LOGGING_CONSOLE", "ERROR")
        os.environ.setdefault("COMET_DISABLE_AUTO_LOGGING", "1")
        stored = self.run.plan().get("track", {}) if self.cfg.resume else {}
        earlier = stored.get("id") if stored.get("tool") == self.tool else None
        try:
            try:
                self._open(earlier)
            except Exception as error:
                if not earlier:
                    raise
                self._say(f"can't resume the run {earlier} ({one_line(error)}); starting a new run")
                earlier = None
                self._open(None)
            if not earlier:
                for tracker in self.accelerator.trackers:
                    tracker.store_init_configuration(self._options())
            identifier, location = TOOLS[self.tool].place(self._handle(), self.run, self.cfg.track.project)
        except Exception as error:  # raised by a library, its network or its disk
            raise ConfigError(f"track={self.tool} can't be started ({one_line(error)}). {TOOLS[self.tool].remedy}") from None
        self.is_on = True
        self.run.write_plan(track={"tool": self.tool, "id": identifier})
        self._say(location)

    def log(self, step: int, metrics: Mapping[str, object]) -> None:
        """Log the metrics of a step, as in metrics.jsonl."""
        if not self.is_on:
            return
        values = {_NOT_IN_A_NAME.sub("_", name): value for name, value in metrics.items() if name != "step"}
        try:
            self.accelerator.log(values, step=step)
        except Exception as error:
            self._fail(error)

    def end(self, stopped_by: int | None = None, failed: bool = False) -> None:
        """Close the run in the tracker.

        Args:
            stopped_by: the signal that stopped training early. None: none did.
            failed: whether an error stopped training.
        """
        if not self.is_on:
            return
        self.is_on = False
        try:
            close = TOOLS[self.tool].end
            with _quiet():
                if close is not None:
                    close(self._handle(), End(stopped_by, failed))
                else:
                    self.accelerator.get_tracker(self.tool).finish()
        except Exception as error:
            self._fail(error)

    def _open(self, earlier: str | None) -> None:
        tool, project = TOOLS[self.tool], self.cfg.track.project
        self.accelerator.trackers = []
        self.accelerator.project_configuration.logging_dir = str(tool.folder(self.run))
        with _short_timeouts(), _quiet():
            options = tool.options(self.run, project, earlier)
            self.accelerator.init_trackers(project, init_kwargs={self.tool: options})
        if not self.accelerator.trackers:
            raise ImportError(f"the package {self.tool} is not installed for this interpreter")

    def _handle(self) -> Any:
        """The library's own object of the run."""
        return self.accelerator.get_tracker(self.tool, unwrap=True)

    def _options(self) -> dict[str, Scalar]:
        """All options by full name, for example `algo.num_epochs: 2.0`, in types that trackers accept."""
        return {"algo.name": self.algorithm, **_flat(asdict(self.cfg))}

    def _fail(self, error: Exception) -> None:
        self.is_on = False
        self._say(f"failed and is turned off ({one_line(error)}). metrics.jsonl has everything")

    def _say(self, text: str) -> None:
        self.run.say(without_secrets(f"track={self.tool}: {text}"))


@contextmanager
def _short_timeouts() -> Iterator[None]:
    """A context in which mlflow gives up after some seconds, unless the user's environment sets its timeouts."""
    added = {name: value for name, value in _WHILE_OPENING.items() if name not in os.environ}
    os.environ |= added
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """A context in which libraries don't print where they store things: the hub has a line of its own for that."""
    with redirect_stdout(_NOWHERE):
        yield


def _flat(values: Mapping[str, object], prefix: str = "") -> dict[str, Scalar]:
    """Nested dictionaries as one, with dotted keys."""
    flat: dict[str, Scalar] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat
