"""What was made of a run afterwards: its adapter with another strength, an average with its base or with other runs."""

from collections.abc import Mapping
from typing import Any

from hub.tasks.report.markup import Html, Table, code, joined, note, section, table, tag
from hub.tasks.report.record import Record, as_mapping

KINDS = ("scaled", "averaged")
"""Parts of plan.json that this section shows."""


def afterwards(record: Record) -> Html:
    """The curve of `hub scale` and the table of `hub average`, as plan.json has them. Empty: neither was done."""
    scaled, averaged = (as_mapping(record.plan.get(name)) for name in KINDS)
    parts: list[Html] = []
    if scaled:
        rows = [{**point, "name": f"{point['alpha']:g}"} for point in scaled.get("curve") or []]
        chosen = f"{scaled['alpha']:g}"
        parts += [tag("h3", "Strength of the adapter"), _losses("strength", "cost", rows, chosen), _where(scaled)]
    if averaged:
        parts += [tag("h3", "Average"), _losses("model", "weight", averaged["models"], "average"), _where(averaged)]
    return section("afterwards", "Made from it", *parts) if parts else joined([])


def _losses(head: str, number: str, rows: list[dict[str, Any]], marked: str) -> Html:
    """The losses on each set: a row for each strength or model, with what was chosen or made in bold."""
    if not rows:
        return note("Its losses were not measured.")
    sets = list(dict.fromkeys(name for row in rows for name in row["losses"]))
    cells = [
        [
            tag("strong", row["name"]) if row["name"] == marked else row["name"],
            "" if row.get(number) is None else f"{row[number]:.4g}",
            *(f"{row['losses'][name]:.4f}" if name in row["losses"] else "-" for name in sets),
        ]
        for row in rows
    ]
    names = [f"{name} loss ↓" for name in sets]
    return table(Table((head, number, *names), cells, frozenset(range(1, len(names) + 2))))


def _where(made: Mapping[str, Any]) -> Html:
    gain = as_mapping(made.get("gain"))
    change = f"Held-out loss {gain['value']:+.4f} ({gain['low']:+.4f} to {gain['high']:+.4f}). " if gain else ""
    return note(change, "Written to ", code(made["path"]))
