"""The experiment tracker of a run (`track.tool`): logs metrics during training and the final status.

Only rank 0 logs. A tracker that can't be started is an error. One that fails later is turned off, and training continues:
metrics.jsonl has everything. A resumed run continues its run in the tracker.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from accelerate import Accelerator

from hub.config.schema import RunConfig
from hub.errors import ConfigError, one_line
from hub.run import Run
from hub.secrets import without_secrets

_WHILE_OPENING = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
"""Replaces mlflow's own 7 retries, which take 4 minutes, and its timeout of 120 s. Restored afterwards, so that a run
survives a restart of the server."""

_REMEDIES = {
    "wandb": "Type wandb login, set WANDB_API_KEY, or set WANDB_MODE=offline to upload later; or type track=none",
    "mlflow": (
        "Check that MLFLOW_TRACKING_URI names a store that can be reached, set MLFLOW_HTTP_REQUEST_MAX_RETRIES and "
        "MLFLOW_HTTP_REQUEST_TIMEOUT to wait longer for it, or type track=none"
    ),
    "tensorboard": "Or type track=none",
}
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
        # The hub reports the location itself. The libraries read both variables when they are imported.
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
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
            identifier, location = self._location()
        except Exception as error:  # raised by a library, its network or its disk
            raise ConfigError(f"track={self.tool} can't be started ({one_line(error)}). {_REMEDIES[self.tool]}") from None
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
            if self.tool == "wandb":
                self._handle().finish(exit_code=128 + stopped_by if stopped_by else int(failed))
            elif self.tool == "mlflow":
                import mlflow  # type: ignore[import-not-found,unused-ignore]

                mlflow.end_run("KILLED" if stopped_by else "FAILED" if failed else "FINISHED")
            else:
                self._handle().close()
        except Exception as error:
            self._fail(error)

    def _open(self, earlier: str | None) -> None:
        options: dict[str, str | None] = {}
        if self.tool == "wandb":
            options = {"name": self.run.path.name}
            options |= {} if "WANDB_DIR" in os.environ else {"dir": str(self.run.path)}
            options |= {"id": earlier, "resume": "allow"} if earlier else {}
        elif self.tool == "mlflow":
            options = {"run_name": self.run.path.name, "run_id": earlier}
        self.accelerator.trackers = []
        with _short_timeouts():
            self.accelerator.init_trackers(self.cfg.track.project, init_kwargs={self.tool: options})
        if not self.accelerator.trackers:
            raise ImportError(f"the package {self.tool} is not installed for this interpreter")

    def _handle(self) -> Any:
        """The library's own object of the run."""
        return self.accelerator.get_tracker(self.tool, unwrap=True)

    def _location(self) -> tuple[str | None, str]:
        """The run's id in the tracker, and a text that says where to find it."""
        if self.tool == "wandb":
            opened = self._handle()
            folder = os.path.dirname(opened.dir)
            return opened.id, opened.url or f"stored in {folder}. To upload it type wandb sync {folder}"
        if self.tool == "mlflow":
            import mlflow

            location = f"run {self.run.path.name} in experiment {self.cfg.track.project} of {mlflow.get_tracking_uri()}"
            return self._handle().info.run_id, location
        return None, f"to view it type tensorboard --logdir {self.run.path.parent}"

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


def _flat(values: Mapping[str, object], prefix: str = "") -> dict[str, Scalar]:
    """Nested dictionaries as one, with dotted keys."""
    flat: dict[str, Scalar] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat
