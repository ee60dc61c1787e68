"""Progress of a run in a notebook: one table that is renewed, in place of lines.

IPython is used only where a notebook has loaded it. A worker has no notebook: it prints its steps as lines that begin with
`MARK`, and the process that started it shows them.
"""

import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from html import escape
from typing import Any

VARIABLE = "HUB_STEPS_FOR_NOTEBOOK"
"""Environment variable of a worker whose output a notebook shows."""

MARK = "\x1ehub step "
"""What begins a line with a step. The first character is one that no library prints."""

MOST_ROWS = 12
"""Most rows of the table. Of a longer run every second step is shown, then every fourth, and so on."""

SECONDS_BETWEEN_UPDATES = 0.25

COLUMNS = (
    ("step", "step", "{:,.0f}"),
    ("loss", "loss", "{:.4f}"),
    ("held-out loss", "eval_loss", "{:.4f}"),
    ("margin", "margin", "{:.3f}"),
    ("accuracy", "accuracy", "{:.2f}"),
    ("learning rate", "learning_rate", "{:.2e}"),
    ("tokens/s", "tokens_per_second", "{:,.0f}"),
    ("GB", "peak_memory_gb", "{:.1f}"),
)
"""Columns: title, name of the metric, format. One that no step has is left out."""


def is_notebook() -> bool:
    """Whether this process is the kernel of a notebook: of Jupyter, Colab, Kaggle or an editor."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


def for_worker() -> dict[str, str]:
    """Environment variables for a worker whose output this process shows."""
    return {VARIABLE: "1"} if is_notebook() else {}


def is_shown_by_parent() -> bool:
    """Whether this process is a worker that a notebook has started."""
    return VARIABLE in os.environ


def line_of(step: Mapping[str, Any]) -> str:
    """A step as a line for the process that shows it. `step_in` reads it back."""
    names = [name for _, name, _ in COLUMNS] + ["total", "left"]
    return MARK + json.dumps({name: step[name] for name in names if name in step})


def step_in(line: str) -> dict[str, Any] | None:
    """The step that a line of a worker holds. None: it is another line."""
    if line.startswith(MARK):
        with suppress(ValueError):
            return dict(json.loads(line.removeprefix(MARK)))
    return None


class StepTable:
    """The steps of a run as a table in a notebook.

    It is HTML, and text for a screen reader or where there is no browser.
    """

    def __init__(self) -> None:
        self._rows: list[tuple[int, dict[str, Any]]] = []
        self._num_taken = 0
        self._stride = 1
        self._handle: Any = None
        self._drawn = 0.0

    def step(self, step: Mapping[str, Any]) -> None:
        """Show a step.

        Args:
            step: its metrics by name. `total`: number of steps of the run. `left`: time to its end, as text.
        """
        if self._rows and not self._is_kept(*self._rows[-1]):
            self._rows.pop()
        self._rows.append((self._num_taken, dict(step)))
        self._num_taken += 1
        while len(self._rows) > MOST_ROWS and self._stride < self._num_taken:
            self._stride *= 2
            self._rows = [row for row in self._rows[:-1] if self._is_kept(*row)] + self._rows[-1:]
        if len(self._rows) > MOST_ROWS:  # each has an evaluation
            self._rows = self._rows[:-1:2] + self._rows[-1:]
        if time.monotonic() - self._drawn >= SECONDS_BETWEEN_UPDATES:
            self._draw()

    def close(self) -> None:
        """Show the last step."""
        if self._rows:
            self._draw()

    def _is_kept(self, number: int, step: Mapping[str, Any]) -> bool:
        return number % self._stride == 0 or "eval_loss" in step

    def _draw(self) -> None:
        import IPython.display  # the notebook has loaded it

        self._drawn = time.monotonic()
        if self._handle is None:
            display: Any = IPython.display.display
            self._handle = display(self, display_id=True)
        else:
            self._handle.update(self)

    def _cells(self) -> list[list[str]]:
        """The titles, then the cells of each row."""
        steps = [step for _, step in self._rows]
        columns = [column for column in COLUMNS if any(column[1] in step for step in steps)]
        body = [[shown.format(step[name]) if name in step else "" for _, name, shown in columns] for step in steps]
        return [[title for title, _, _ in columns], *body]

    def _where(self) -> str:
        last = self._rows[-1][1]
        left = "" if last["step"] >= last["total"] else f", {last['left']} left"
        return f"step {last['step']:,.0f} of {last['total']:,}{left}"

    def __repr__(self) -> str:
        cells = self._cells()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        rows = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
        return "\n".join([self._where(), *rows])

    def _repr_html_(self) -> str:
        last = self._rows[-1][1]
        titles, *body = self._cells()
        bar = f'<progress value="{last["step"]:.0f}" max="{last["total"]}" aria-label="steps" style="width: 16em"></progress>'
        head = "".join(f'<th scope="col">{escape(title)}</th>' for title in titles)
        rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in body)
        return f"<div>{bar} {escape(self._where())}</div><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
