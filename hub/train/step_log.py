"""What a run logs while it trains: metrics.jsonl, the progress on the terminal, the tracker, and the plugins' hook."""

from collections import deque
from contextlib import suppress

from hub.result import NUM_RECENT, read_metrics
from hub.run import Run
from hub.train.progress import ProgressLine
from hub.train.setup.setup import Observe
from hub.train.tracker import Tracking


class StepLog:
    """The log of one run, in one process. Only rank 0 writes."""

    def __init__(self, run: Run, tracking: Tracking, observe: Observe, total: int) -> None:
        """Args:
        run: the run folder.
        tracking: the tracker, not started yet.
        observe: calls a hook of the plugins.
        total: number of steps of the run.
        """
        self._run, self._tracking, self._observe, self._total = run, tracking, observe, total
        self._progress: ProgressLine | None = None
        self._recent: deque[float] = deque(maxlen=NUM_RECENT)
        self._for_first_line: dict[str, float] = {}
        self._held: dict[str, float] | None = None

    @property
    def train_loss(self) -> float | None:
        """Mean loss of the last logged steps. None before the first."""
        return sum(self._recent) / len(self._recent) if self._recent else None

    def start(self, done: int) -> None:
        """Show the progress from now on, of a run with so many steps done."""
        self._progress = ProgressLine(self._total, self._run.is_main, done)

    def stop(self) -> None:
        """End the display of the progress."""
        if self._progress is not None:
            self._progress.stop()

    def say(self, text: str) -> None:
        """Print a line, above the progress."""
        if self._progress is None:
            self._run.say(text)
        elif self._run.is_main:
            self._progress.say(text)
            self._run.note(text)

    def stopping(self) -> None:
        """Log that a signal has come to stop the run. The thread that waits for signals calls it."""
        self.say("stopping after this step, with a checkpoint (Ctrl-C again: at once, without one)")

    def before_training(self, loss: float, counted: str, figures: dict[str, float]) -> None:
        """Log the held-out loss before training, on how many samples as in `16 samples`, and what the objective has besides."""
        self._for_first_line |= {f"{name}_before": value for name, value in {"eval_loss": loss, **figures}.items()}
        self.say(f"held-out loss before training {loss:.4f} ({counted}{_shares(figures)})")
        self._tracking.log(0, {"eval_loss": loss, **figures})

    def measured_before(self, values: dict[str, float]) -> None:
        """Log what was measured before training, in the tracker. evaluation.json has it too."""
        self._tracking.log(0, values)

    def hold(self, metrics: dict[str, float]) -> None:
        """Take the metrics of a step that may stay unlogged. If the run fails after it, `fail` writes them."""
        self._held = metrics

    def step(self, metrics: dict[str, float]) -> None:
        """Log a step, and call the plugins' hook."""
        self._write(metrics)
        self._observe("hub_log", run=self._run, step=int(metrics["step"]), metrics=metrics)

    def fail(self) -> None:
        """Log the last step of a run that fails, if it is not logged yet. Plugins are not called."""
        if self._held is not None:
            with suppress(OSError):  # the disk may be why it fails
                self._write(self._held)

    def _write(self, metrics: dict[str, float]) -> None:
        self._held = None
        if "skipped" not in metrics:
            self._recent.append(metrics["loss"])
        metrics |= self._for_first_line
        self._for_first_line = {}
        self._run.log(metrics)
        step = int(metrics["step"])
        if self._progress is not None:
            self._progress.step(step, metrics)
        if "eval_loss" in metrics:
            line = f"held-out loss {metrics['eval_loss']:.4f} after step {step}{_shares(metrics)}"
            if self._progress is not None and self._progress.has_table:
                self._run.note(line)
            else:
                self.say(line)
        self._tracking.log(step, metrics)

    def restore(self, eval_loss_before: float | None) -> None:
        """Continue the log of a resumed run, whose metrics.jsonl ends with the step to continue after."""
        lines = [line for line in read_metrics(self._run.metrics_file) if "skipped" not in line]
        self._recent.extend(line["loss"] for line in lines[-NUM_RECENT:])
        if eval_loss_before is not None and not any("eval_loss_before" in line for line in lines):
            self._for_first_line["eval_loss_before"] = eval_loss_before


def _shares(figures: dict[str, float]) -> str:
    """The held-out accuracy and margin in words, of an objective that has them."""
    names = ("eval_accuracy", "eval_likelier", "eval_margin")
    return "".join(f", {name.removeprefix('eval_')} {figures[name]:.4g}" for name in names if name in figures)
