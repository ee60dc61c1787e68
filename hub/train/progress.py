"""Shows training progress: a progress bar on a terminal, a table in a notebook, plain lines elsewhere. Rank 0 only."""

import os
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import suppress

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from hub.system import notebook
from hub.system.saying import PLAIN_TERMINALS, say

SECONDS_BETWEEN_LINES = 5.0

SECONDS_OF_ESTIMATE = 3600.0
"""The time left is estimated from the steps of the last hour: a step may take minutes."""

COLUMNS_FOR_ALL = 126
"""Width of a terminal with room for the bar and all figures. A narrower one gets no bar, and the figures that fit into 80."""

COLUMNS_FOR_LINE = 100
"""Width of a terminal with room for a line with all figures. A narrower one gets the figures that fit into 80."""


class ProgressLine:
    """A progress bar, a table or progress lines of a run."""

    def __init__(self, total: int, enabled: bool, done: int = 0) -> None:
        self.total = total
        self.enabled = enabled
        self.started = time.monotonic()
        self.first = done
        self.last_line = 0.0
        self.bar: Progress | None = None
        self.table = notebook.StepTable() if enabled and notebook.is_notebook() else None
        self.is_narrow = False
        is_terminal = sys.stdout is not None and sys.stdout.isatty() and os.environ.get("TERM") not in PLAIN_TERMINALS
        if enabled and sys.stdout is not None and sys.stdout.isatty():
            self.is_narrow = shutil.get_terminal_size().columns < COLUMNS_FOR_LINE
        if enabled and is_terminal:
            console = Console()
            self.is_narrow = console.width < COLUMNS_FOR_ALL
            columns = [
                SpinnerColumn("line"),
                TextColumn("step"),
                MofNCompleteColumn(),
                *([] if self.is_narrow else [BarColumn(bar_width=24)]),
                TextColumn("{task.description}"),
                *([] if self.is_narrow else [TimeElapsedColumn()]),
                TextColumn("left"),
                TimeRemainingColumn(),
            ]
            self.bar = Progress(*columns, console=console, refresh_per_second=4, speed_estimate_period=SECONDS_OF_ESTIMATE)
            self.task = self.bar.add_task("", total=total, completed=done)
            self.bar.start()

    @property
    def has_table(self) -> bool:
        """Whether steps are shown as a table, which has the held-out losses too."""
        return self.table is not None or (self.enabled and notebook.is_shown_by_parent())

    def step(self, number: int, metrics: Mapping[str, float]) -> None:
        """Show one logged step."""
        if not self.enabled:
            return
        if self.has_table:
            step = {**metrics, "step": number, "total": self.total, "left": self._left(number)}
            if self.table is not None:
                self.table.step(step)
            else:
                say(notebook.line_of(step))
            return
        speed, memory = f"{metrics['tokens_per_second']:,.0f} tokens/s", f"{metrics['peak_memory_gb']:.1f} GB"
        text = f"loss {metrics['loss']:.4f}  "
        if self.is_narrow:
            text += f"{speed}  {memory}"
        else:
            peak = f"{metrics['mfu']:.0%} of peak  " if "mfu" in metrics else ""
            text += f"lr {metrics['learning_rate']:.2e}  {speed}  {peak}{metrics['packing_efficiency']:.0%} filled  {memory}"
        if self.bar is not None:
            with suppress(OSError):
                self.bar.update(self.task, completed=number, description=text)
            return
        now = time.monotonic()
        if number in (self.first + 1, self.total) or now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            say(f"step {number}/{self.total}  {text}  left {self._left(number)}")

    def _left(self, number: int) -> str:
        """The time to the end behind a step, as text."""
        return _clock((time.monotonic() - self.started) / max(1, number - self.first) * (self.total - number))

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
        if self.table is not None:
            self.table.close()
        if self.bar is not None:
            with suppress(OSError):
                self.bar.stop()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
