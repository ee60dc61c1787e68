"""The run folder, which holds all that a run writes.

run.yaml (the config), plan.json (decisions and their reasons), metrics.jsonl (a line per logged step), checkpoints/, model/
(for transformers or peft), result.json.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from hub.errors import ConfigError, can_not_write, printable
from hub.result import METRICS, NUM_RECENT, Result, read_metrics
from hub.system.files import make_folder, sync_folder
from hub.system.saying import say, say_error
from hub.system.signals import stop_request
from hub.system.small_files import small_files

ASKED_FOR = "asked for"
"""The reason in plan.json for a decision that an option made."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why one rank ended before its time: `error-rank<N>.json` in the run folder, for the process that started it."""

    rank: int
    message: str
    exit_code: int
    time: float
    signal_number: int | None = None
    traceback: str | None = None
    file: str = ""
    smaller_bound: int | None = None
    """After an out-of-memory error: tokens per micro-batch to restart the run with."""

    @property
    def text(self) -> str:
        """The line for the user. A HubError is complete by itself."""
        return self.message if self.traceback is None else f"rank {self.rank} failed: {self.message} (see {self.file})"

    @classmethod
    def read_all(cls, run: "Run") -> "list[Failure]":
        """The failures in a run folder, the earliest first."""
        files = run.path.glob("error-rank*.json")
        return sorted((cls(**json.loads(file.read_text(encoding="utf-8"))) for file in files), key=lambda f: f.time)


class Run:
    """A run folder, as used by one process. Only the main process (rank 0) writes or prints."""

    def __init__(self, path: Path, is_main: bool = True) -> None:
        self.path = path
        self.is_main = is_main
        self._latest_before: str | None = None
        self._is_full = False

    @classmethod
    def create(cls, output_dir: str, name: str | None = None) -> "Run":
        """Make a new run folder. The link `latest` beside it points to the newest run that began to train; without one, here.

        Raises:
            ConfigError: the folder can't be made, or exists already.
        """
        parent = Path(os.path.expanduser(output_dir)).absolute()
        try:
            make_folder(parent)
            while True:
                path = parent / (name or datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f"))
                try:
                    path.mkdir()
                    break
                except FileExistsError:
                    if name:
                        raise ConfigError(f"run_name={name}: {path} exists already. Type another run_name, or none") from None
            run = cls(path)
            run.take_latest()
            sync_folder(parent)
        except OSError as error:
            raise can_not_write(output_dir, error) from None
        return run

    def take_latest(self) -> None:
        """Let `latest` point here, unless it points to a run that began to train: it does so once this one begins, too."""
        latest = self.path.parent / "latest"
        if latest.exists() and not latest.is_symlink():
            self.say(f"{latest} is no link, so it stays as it is: it does not lead to this run")
            return
        self._latest_before = os.readlink(latest) if latest.is_symlink() else None
        if not Run(latest).has_begun:
            self._point_latest_to(self.path.name)

    def _point_latest_to(self, name: str) -> None:
        link = self.path.parent / f".latest-{uuid4().hex}"  # other threads and machines may do the same
        link.symlink_to(name)
        link.replace(self.path.parent / "latest")

    def begin(self) -> None:
        """Note that training begins or goes on: `latest` points here from now on, and the end of before is forgotten."""
        if not self.is_main:
            return
        self.end_before.unlink(missing_ok=True)
        latest = self.path.parent / "latest"  # a run of a sweep has none beside it
        if latest.is_symlink() and os.readlink(latest) != self.path.name:
            self._point_latest_to(self.path.name)

    @property
    def has_begun(self) -> bool:
        """Whether a step was trained."""
        return self.metrics_file.is_file() or self.has_checkpoint or self.model_path.is_dir()

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint, whole or not, also one that was set aside."""
        return any(file for form in ("step-*", "set-aside-*/step-*") for file in self.checkpoints_path.glob(form))

    def discard(self) -> None:
        """Remove the folder of a run that has not begun. `latest` points to the run before, if it pointed here."""
        shutil.rmtree(self.path, ignore_errors=True)
        latest, before = self.path.parent / "latest", self._latest_before
        if not latest.is_symlink() or os.readlink(latest) != self.path.name:
            return
        if before is not None and (self.path.parent / before).is_dir():
            self._point_latest_to(before)
        else:
            latest.unlink(missing_ok=True)

    @property
    def joined_file(self) -> Path:
        """On a machine other than the first: the file with the path of the run folder that its workers joined."""
        return self.path / "joined.txt"

    @property
    def config_file(self) -> Path:
        return self.path / "run.yaml"

    @property
    def log_file(self) -> Path:
        """What the run has said, whether or not anybody could read it."""
        return self.path / "log.txt"

    @property
    def metrics_file(self) -> Path:
        return self.path / METRICS

    @property
    def result_file(self) -> Path:
        return self.path / "result.json"

    @property
    def model_path(self) -> Path:
        return self.path / "model"

    @property
    def checkpoints_path(self) -> Path:
        return self.path / "checkpoints"

    def say(self, text: str) -> None:
        """Print a line for the user, and write it into the run's log. What can't be printed is dropped."""
        if self.is_main:
            say(printable(text))
            self.note(text)

    def note(self, text: str) -> None:
        """Write a line into the run's log, log.txt, with the time. If that can't be written, it is dropped."""
        line = f"{datetime.now():%Y-%m-%d %H:%M:%S}  {printable(text)}\n"
        with suppress(OSError), self.log_file.open("a", encoding="utf-8") as file:
            file.write(line)

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl. What a full disk refuses waits in memory, and is tried again with the next line."""
        if self.is_main:
            was_full = self._is_full
            refused = small_files.append(self.metrics_file, json.dumps(_finite(metrics), allow_nan=False) + "\n")
            self._is_full = refused is not None
            if refused is not None and not was_full:
                self.say(f"{self.path} can't be written ({refused.strerror}). What is logged waits in memory. Free space there")
            elif was_full and refused is None:
                self.say(f"{self.path} can be written again, and has all that waited")

    def reached(self) -> dict[str, Any]:
        """What a run had reached by its files, as fields of `Result`: for a worker that left no result."""
        lines, plan = read_metrics(self.metrics_file), self.plan()
        losses = [line["loss"] for line in lines if "skipped" not in line][-NUM_RECENT:]
        held_out = [line["eval_loss"] for line in lines if "eval_loss" in line]
        before = next((line["eval_loss_before"] for line in lines if "eval_loss_before" in line), None)
        return {
            "num_steps": lines[-1]["step"] if lines else 0,
            "effective_batch_size": plan.get("effective_batch_size"),
            "train_loss": sum(losses) / len(losses) if losses else None,
            "eval_loss_before": before,
            "eval_loss": held_out[-1] if held_out else before,
            "base_model_path": Path(plan["base_model_path"]) if "base_model_path" in plan else None,
        }

    def plan(self) -> dict[str, Any]:
        """Read plan.json. Empty if there is none yet."""
        file = self.path / "plan.json"
        if isinstance(waiting := small_files.latest(file), dict):
            return dict(waiting)
        decisions: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return decisions

    def write_plan(self, **decisions: Any) -> None:
        """Add decisions and their reasons to plan.json."""
        if self.is_main:
            small_files.write(self.path / "plan.json", self.plan() | decisions)

    def failure_file(self, rank: int) -> Path:
        """The file of a rank's failure."""
        return self.path / f"error-rank{rank}.json"

    def write_failure(self, failure: Failure) -> None:
        """Write the failure of a rank. Every rank writes its own."""
        file = self.failure_file(failure.rank)
        small_files.write(file, asdict(failure) | {"file": str(file)})

    @property
    def end_before(self) -> Path:
        """The result of a run that is resumed, until training goes on: `hub/launch/past_end.py`."""
        return self.path / ".result-before.json"

    def write_what_waits(self, spare_dir: str | None = None, minutes: float = 0.0) -> str:
        """Write what a full disk has refused, before this process ends.

        Args:
            spare_dir: folder on another disk, `launch.spare_dir`, which takes it otherwise.
            minutes: how long to try, `launch.wait_for_disk_minutes`. A signal to stop ends that.

        Returns:
            What could not be written, in a line. Empty: nothing.
        """
        until, stopped, refused, said = time.monotonic() + minutes * 60, stop_request.signal_number, None, False
        with suppress(OSError):
            while (refused := small_files.flush()) is not None and spare_dir is None:
                if time.monotonic() >= until or stop_request.signal_number != stopped:
                    break
                if not said:
                    names = ", ".join(file.name for file in small_files.waiting)
                    self.say(f"{names} can't be written yet ({refused.strerror}): trying for up to {minutes:g} minutes")
                said = True
                time.sleep(min(5.0, minutes * 6))
        if refused is None:
            return ""
        files = ", ".join(str(file) for file in small_files.waiting)
        with suppress(OSError):
            if (spare := self.spare(spare_dir)) is not None:
                small_files.move(spare)
                say_error(f"hub: {files} could not be written ({refused.strerror}). What they would have is in {spare}")
                return ""
        return f"{files} could not be written ({refused.strerror})"

    def spare(self, spare_dir: str | None) -> Path | None:
        """The folder of this run below `launch.spare_dir`. None without one."""
        return Path(spare_dir) / self.path.name if spare_dir else None

    def write_result(self, result: Result) -> None:
        if self.is_main:
            small_files.write(self.result_file, asdict(result))


def _finite(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Replace NaN and infinity, which JSON does not have, with their names."""
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}
