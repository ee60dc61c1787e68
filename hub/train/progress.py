"""Shows training progress: a progress bar on a terminal, plain lines elsewhere. Rank 0 only."""

import sys
import time
from collections.abc import Mapping
from contextlib import suppress

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hub.system.saying import say

SECONDS_BETWEEN_LINES = 5.0


class ProgressLine:
    """A progress bar or progress lines of a run."""

    def __init__(self, total: int, enabled: bool, done: int = 0) -> None:
        self.total = total
        self.enabled = enabled
        self.started = time.monotonic()
        self.first = done
        self.last_line = 0.0
        self.bar: Progress | None = None
        if enabled and sys.stdout is not None and sys.stdout.isatty():
            self.bar = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=24),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=Console(),
                refresh_per_second=4,
            )
            self.task = self.bar.add_task("", total=total, completed=done)
            self.bar.start()

    def step(self, number: int, metrics: Mapping[str, float]) -> None:
        """Show one logged step."""
        if not self.enabled:
            return
        text = (
            f"loss {metrics['loss']:.4f}  lr {metrics['learning_rate']:.2e}  "
            f"{metrics['tokens_per_second']:,.0f} tokens/s  "
            + (f"{metrics['mfu']:.0%} of peak  " if "mfu" in metrics else "")
            + f"{metrics['packing_efficiency']:.0%} filled  {metrics['peak_memory_gb']:.1f} GB"
        )
        if self.bar is not None:
            with suppress(OSError):
                self.bar.update(self.task, completed=number, description=text)
            return
        now = time.monotonic()
        if number in (self.first + 1, self.total) or now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            left = (now - self.started) / max(1, number - self.first) * (self.total - number)
            say(f"step {number}/{self.total}  {text}  left {_clock(left)}")

    def say(self, text: str) -> None:
        """Print a line between the steps."""
        if not self.enabled:
            return
        if self.bar is not None:
            with suppress(OSError):
                self.bar.console.print(text, markup=False, highlight=False)
        else:
            say(text)

    def stop(self) -> None:
        if self.bar is not None:
            with suppress(OSError):
                self.bar.stop()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
