"""The tracker of a run (`track.tool`): what it is told while training goes on, and how it learns how that ended.

Rank 0 alone speaks to it. A tracker that can't be started is the user's to mend; one that fails later is told no more, and
training goes on: metrics.jsonl has everything. A run that is resumed goes on in the tracker too.
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
from hub.plugins.registry import registry
from hub.run import Run
from hub.secrets import without_secrets

_WHILE_OPENED = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
"""In place of mlflow's own 7 retries, which take 4 minutes, and 120 s each. Later they are its own again: a run outlives a
restart of the server."""

_WAY_OUT = {
    "wandb": "Type wandb login, set WANDB_API_KEY, or set WANDB_MODE=offline to upload later; or type track=none",
    "mlflow": (
        "See whether MLFLOW_TRACKING_URI names a store that can be reached, set MLFLOW_HTTP_REQUEST_MAX_RETRIES and "
        "MLFLOW_HTTP_REQUEST_TIMEOUT to wait longer for it, or type track=none"
    ),
    "tensorboard": "Or type track=none",
}
_NOT_IN_A_NAME = re.compile(r"[^\w.\- ]")
"""mlflow refuses names of metrics with other characters; the name of a source of data may have any."""


class Tracking:
    """The tracker of one run, as seen by one process."""

    def __init__(self, cfg: RunConfig, run: Run, accelerator: Accelerator) -> None:
        self.cfg, self.run, self.accelerator = cfg, run, accelerator
        self.tool = cfg.track.tool
        self.is_on = False

    def start(self) -> None:
        """Open the run in the tracker, or the one with which this run began, and store the options.

        Raises:
            ConfigError: it can't be opened.
        """
        if self.tool == "none" or not self.run.is_main:
            return
        # The hub says itself where things are. Both are read when the libraries are imported.
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        before = self.run.plan().get("track", {}) if self.cfg.resume else {}
        earlier = before.get("id") if before.get("tool") == self.tool else None
        try:
            try:
                self._open(earlier)
            except Exception as error:
                if not earlier:
                    raise
                self._say(f"the run {earlier} can't be gone on with ({one_line(error)}): a new one is begun")
                earlier = None
                self._open(None)
            if not earlier:
                for tracker in self.accelerator.trackers:
                    tracker.store_init_configuration(self._options())
            identifier, place = self._where()
        except Exception as error:  # of a library, its network or its disk
            raise ConfigError(f"track={self.tool} can't be started ({one_line(error)}). {_WAY_OUT[self.tool]}") from None
        self.is_on = True
        self.run.write_plan(track={"tool": self.tool, "id": identifier})
        self._say(place)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Tell it what metrics.jsonl has of a step."""
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
            stopped_by: the signal that ended training before its last step.
            failed: an error ended it.
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
        given: dict[str, Any] = {}
        if self.tool == "wandb":
            given = {"name": self.run.path.name}
            given |= {} if "WANDB_DIR" in os.environ else {"dir": str(self.run.path)}
            given |= {"id": earlier, "resume": "allow"} if earlier else {}
        elif self.tool == "mlflow":
            given = {"run_name": self.run.path.name, "run_id": earlier}
        self.accelerator.trackers = []
        with _soon_given_up():
            self.accelerator.init_trackers(self.cfg.track.project, init_kwargs={self.tool: given})
        if not self.accelerator.trackers:
            raise ImportError(f"the package {self.tool} is not installed for this interpreter")

    def _handle(self) -> Any:
        """The library's own object for the run."""
        return self.accelerator.get_tracker(self.tool, unwrap=True)

    def _where(self) -> tuple[str | None, str]:
        """By what name the tracker knows this run, and where a person finds it."""
        if self.tool == "wandb":
            opened = self._handle()
            folder = os.path.dirname(opened.dir)
            return opened.id, opened.url or f"kept in {folder}. To upload it type wandb sync {folder}"
        if self.tool == "mlflow":
            import mlflow

            place = f"run {self.run.path.name} in experiment {self.cfg.track.project} of {mlflow.get_tracking_uri()}"
            return self._handle().info.run_id, place
        return None, f"to look at it type tensorboard --logdir {self.run.path.parent}"

    def _options(self) -> dict[str, Any]:
        """All options by their full names, `algo.lora_r: 8`, in the types that trackers take."""
        return {"algo.name": registry().algorithm_of(self.cfg.algo).name, **_flat(asdict(self.cfg))}

    def _fail(self, error: Exception) -> None:
        self.is_on = False
        self._say(f"failed and is told no more ({one_line(error)}). metrics.jsonl has everything")

    def _say(self, text: str) -> None:
        self.run.say(without_secrets(f"track={self.tool}: {text}"))


@contextmanager
def _soon_given_up() -> Iterator[None]:
    """Within it mlflow tries for some seconds only, where the user's environment does not say how long."""
    added = {name: value for name, value in _WHILE_OPENED.items() if name not in os.environ}
    os.environ |= added
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat
