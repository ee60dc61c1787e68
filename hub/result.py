"""What a run came to: its result for people and programs, and the metrics that it logged."""

import json
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hub.errors import ConfigError, LaunchError
from hub.tables import as_html, as_text

METRICS = "metrics.jsonl"


@dataclass(frozen=True, kw_only=True, repr=False)
class Result:
    """The result of a run: the content of result.json, and what `hub.run()` returns. It shows itself as a table."""

    status: str
    """completed, verified (by `hub verify`), failed or interrupted. Of a job on a cluster: submitted, or only written."""

    algo: str
    backend: str
    model: str
    """The value of `model.path`."""

    run_path: Path
    """The run folder."""

    model_path: Path | None = None
    """Folder with the trained model (transformers) or adapter (peft). None if training did not get that far."""

    base_model_path: Path | None = None
    """Local folder of the base weights."""

    num_steps: int = 0
    effective_batch_size: int | None = None
    train_loss: float | None = None
    """Mean cross entropy per loss token over the last logged steps (at most 10), in nats."""

    eval_loss_before: float | None = None
    eval_loss: float | None = None
    """Held-out loss of the result: of the last step, or with `algo.keep_best` of the best evaluation."""

    best_step: int | None = None
    """With `algo.keep_best`: the step whose model is the result."""

    ended_early: bool = False
    """Whether early stopping ended training before its last step."""

    tokens_per_second: float | None = None
    """Of all processes together, without padding. Time for evaluation and saving is not counted."""

    peak_memory_gb: float | None = None
    """Maximum over the processes: allocated by torch on a GPU, resident on a CPU. 1 GB = 2**30 bytes."""

    predicted_peak_memory_gb: float | None = None
    """`peak_memory_gb` as `hub plan` predicts it. None: on a CPU, or if the run ended before it was computed."""

    seconds: float = 0.0
    """Run time of the worker."""

    error: str | None = None
    """Why it failed or was interrupted."""

    diagnosis: list[dict[str, Any]] = field(default_factory=list)
    """What the curves show to be wrong: kind, title, evidence, changes (option, value, why). Empty: nothing stands out."""

    @classmethod
    def read(cls, file: Path) -> "Result":
        """Read a run folder's result.json."""
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        names = {item.name for item in fields(cls)}
        paths = ("run_path", "model_path", "base_model_path")
        known: dict[str, Any] = {k: Path(v) if k in paths and v else v for k, v in values.items() if k in names}
        return cls(**known)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl: one for each logged step. The first also has `eval_loss_before`."""
        return read_metrics(self.run_path / METRICS)

    def __repr__(self) -> str:
        return as_text(self._rows())

    def _repr_html_(self) -> str:
        return as_html(self._rows())

    def _rows(self) -> list[tuple[str, str]]:
        """Names and values, for people."""
        losses = [f"{loss:.4f}" for loss in (self.eval_loss_before, self.eval_loss) if loss is not None]
        file = self.run_path / "verify.json"
        checks = json.loads(file.read_text(encoding="utf-8"))["checks"] if file.is_file() else []
        num_failed = sum(check["holds"] is False for check in checks)
        rows = [
            ("status", self.status),
            ("algorithm", f"{self.algo}, backend {self.backend}"),
            ("base model", self.model),
            ("steps", self._steps()),
            ("training loss", f"{self.train_loss:.4f}" if self.train_loss is not None else ""),
            ("held-out loss", " -> ".join(losses)),
            ("tokens/s", f"{self.tokens_per_second:,.0f}" if self.tokens_per_second else ""),
            ("peak memory", self._peak()),
            ("time", f"{self.seconds:,.0f} s"),
            ("checks", f"{len(checks) - num_failed} passed, {num_failed} failed, see {file}" if checks else ""),
            ("diagnosis", "; ".join(finding["title"] for finding in self.diagnosis)),
            ("error", self.error or ""),
            ("model", str(self.model_path or "")),
            ("run folder", str(self.run_path)),
        ]
        return [(name, value) for name, value in rows if value]

    def _peak(self) -> str:
        if self.peak_memory_gb is None:
            return ""
        predicted = self.predicted_peak_memory_gb
        return f"{self.peak_memory_gb:.1f} GB" + ("" if predicted is None else f", predicted {predicted:.1f} GB")

    def _steps(self) -> str:
        if not self.num_steps:
            return ""
        early = ", ended early" if self.ended_early else ""
        best = f", the result is that of step {self.best_step:,}" if self.best_step else ""
        return f"{self.num_steps:,} of {self.effective_batch_size} samples{early}{best}"

    def plot(self, ax: Any = None) -> Any:
        """Plot the training loss and the held-out loss over the steps. Needs matplotlib.

        Args:
            ax: axes of matplotlib to draw into. None: new ones.

        Returns:
            The axes, a `matplotlib.axes.Axes`. In a script `.figure.savefig("loss.png")` writes them to a file.

        Raises:
            ConfigError: no step was logged.
            LaunchError: matplotlib is not installed.
        """
        lines = [line for line in self.metrics if "skipped" not in line]
        if not lines:
            raise ConfigError(f"{self.run_path} has no logged step, so there is no loss to plot (status {self.status})")
        if ax is None:
            try:
                from matplotlib import pyplot
            except ImportError:
                raise LaunchError("plot() needs matplotlib, which is not installed. Type pip install matplotlib") from None
            _, ax = pyplot.subplots()
        ax.plot([line["step"] for line in lines], [float(line["loss"]) for line in lines], label="training loss")
        before = [] if self.eval_loss_before is None else [(0, self.eval_loss_before)]
        held_out = before + [(line["step"], float(line["eval_loss"])) for line in lines if "eval_loss" in line]
        if held_out:
            ax.plot(*zip(*held_out, strict=True), marker="o", label="held-out loss")
        ax.set_xlabel("step")
        ax.set_ylabel("loss in nats per token")
        ax.set_title(f"{self.algo} on {self.model}")
        ax.legend()
        return ax


@dataclass(frozen=True, kw_only=True, repr=False)
class Submitted(Result):
    """A job on a cluster: it will run elsewhere, so there is no result yet. `run_path` is where its run folder will be."""

    job: str = ""
    """The job file."""

    job_number: str | None = None
    """The cluster's number or name of the job. None: it was not submitted (launch.dry_run=true)."""

    job_file: Path | None = None
    """Where the job file is. None: it was submitted without being stored."""

    log: str = ""
    """The command that shows the job's log."""

    cancel: str = ""
    """The command that ends the job."""

    volume: str = ""
    """The claim, volume or bucket that the run folder is in. Empty: it is on a disk that this machine sees."""

    def _rows(self) -> list[tuple[str, str]]:
        return self.rows()

    def rows(self) -> list[tuple[str, str]]:
        """What is shown of the job: names and values."""
        number = self.job_number or f"none: {self.status}"
        rows = [("job", number), ("job file", str(self.job_file or "")), ("log", self.log), ("end it", self.cancel)]
        place = f"{self.run_path} in {self.volume}" if self.volume else str(self.run_path)
        return [*((name, value) for name, value in rows if value), ("run folder", place)]


NUM_RECENT = 10
"""Number of logged steps over which the reported training loss is averaged."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a backend's train function returns; the worker makes a `Result` of it. Meanings as there."""

    num_steps: int
    effective_batch_size: int
    train_loss: float | None
    eval_loss_before: float | None
    eval_loss: float | None
    tokens_per_second: float | None
    peak_memory_gb: float | None
    base_model_path: Path
    model_path: Path | None = None
    best_step: int | None = None
    ended_early: bool = False
    stopped_by: int | None = None
    """Number of the signal that ended training before its last step."""

    predicted_peak_memory_gb: float | None = None
    diagnosis: list[dict[str, Any]] = field(default_factory=list)
    """What the curves show to be wrong. The task fills it in."""


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """Read the lines of a metrics.jsonl. What a kill or a power loss left incomplete is skipped."""
    if not file.is_file():
        return []
    text = file.read_text(encoding="utf-8", errors="replace")
    lines = []
    for line in text[: text.rfind("\n") + 1].split("\n"):
        with suppress(ValueError):  # zeros, where the disk had the length of the file and not yet its content
            if isinstance(values := json.loads(line), dict) and "step" in values:
                lines.append(values)
    return lines
