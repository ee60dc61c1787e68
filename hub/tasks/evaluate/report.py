"""The result of an evaluation: a table for people, JSON for programs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hub.tables import as_columns, as_html

VERSION = 1
"""Of evaluation.json."""

WIDTH = 80
_LONGEST = {"set": 14, "metric": 22}


@dataclass(repr=False)
class Evaluation:
    """What was measured. In a terminal and in a notebook it is a table."""

    models: list[dict[str, Any]]
    """The one that was asked for, then the one that it is compared with."""

    settings: dict[str, Any]
    """Every setting that decides a figure."""

    rows: list[dict[str, Any]]
    """One for each figure: docs/evaluation.md has its fields."""

    seconds: float
    written: Path | None = None
    """The file with all of this."""
    note: str = ""
    """What became of an older result."""

    def as_json(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "models": self.models,
            "settings": self.settings,
            "rows": self.rows,
            "seconds": round(self.seconds, 2),
        }

    def value(self, metric: str, set: str | None = None) -> float:
        """The figure of the model that was asked for.

        Args:
            metric: its name, as `loss`.
            set: of this set or task. None: of the first that has it.

        Raises:
            KeyError: there is no such figure.
        """
        for row in self.rows:
            if row["metric"] == metric and set in (None, row["set"]):
                value: float = row["values"][0]["value"]
                return value
        raise KeyError(f"no {metric}{f' of {set}' if set else ''} was measured. There are: {', '.join(map(_name, self.rows))}")

    def __repr__(self) -> str:
        head, cells = table(self.rows, len(self.models) > 1)
        lines = as_columns([head, *cells])
        lines.insert(1, "-" * max(map(len, lines)))
        names = [model["name"] for model in self.models]
        compared = f"{names[0]}, compared with {names[1]}" if len(names) > 1 else str(names[0])
        notes = [f"{compared}. {self.seconds:,.0f} s"]
        if len(names) > 1:
            notes.append("[ ]: 95 % interval of the difference on the same rows; p: McNemar or paired bootstrap")
        if self.written is not None:
            notes.append(f"written to {self.written}{f'. {self.note}' if self.note else ''}")
        return "\n".join([*lines, "", *notes])

    def _repr_html_(self) -> str:
        head, cells = table(self.rows, len(self.models) > 1)
        return as_html(cells, head)


def table(rows: Sequence[dict[str, Any]], compared: bool) -> tuple[list[str], list[list[str]]]:
    """The head and the cells of the table.

    Args:
        rows: of evaluation.json.
        compared: whether they have the figures of two models.
    """
    if not compared:
        head = ["set", "metric", "value", "± error", "rows"]
        return head, [
            [*_names(row), number(row["values"][0]["value"]), _error(row["values"][0]), f"{row['n']:,}"] for row in rows
        ]
    head = ["set", "metric", "before", "after", "difference", "p"]
    cells = []
    for row in rows:
        after, before = row["values"]
        cells.append(
            [
                *_names(row),
                number(before["value"]) if before else "",
                number(after["value"]),
                _change(row["difference"]),
                _probability(row["difference"]),
            ]
        )
    return head, cells


def number(value: float) -> str:
    """A figure with four significant digits or so."""
    if abs(value) >= 1e6:
        return f"{value:.2e}"
    return (
        f"{value:,.0f}"
        if abs(value) >= 1000
        else f"{value:.1f}"
        if abs(value) >= 100
        else f"{value:.{2 if abs(value) >= 10 else 3}f}"
    )


def _names(row: dict[str, Any]) -> list[str]:
    texts = [row["set"], row["metric"]]
    return [text if len(text) <= most else f"{text[: most - 1]}…" for text, most in zip(texts, _LONGEST.values(), strict=True)]


def _name(row: dict[str, Any]) -> str:
    return f"{row['metric']} of {row['set']}"


def _error(value: dict[str, Any]) -> str:
    return "" if value["stderr"] is None else number(value["stderr"])


def _change(difference: dict[str, Any] | None) -> str:
    if difference is None:
        return ""
    low, high = number(difference["low"]), number(difference["high"])
    return f"{'+' if difference['value'] >= 0 else ''}{number(difference['value'])} [{low}, {high}]"


def _probability(difference: dict[str, Any] | None) -> str:
    if difference is None:
        return ""
    p = difference["p"]
    return "<0.001" if p < 0.001 else f"{p:.3f}"
