"""What was made of a run afterwards: its adapter with another strength, an average with other runs, exports."""

from collections.abc import Mapping
from typing import Any

from hub.tasks.report.markup import Html, Table, code, joined, note, section, table, tag
from hub.tasks.report.record import Record, as_mapping

KINDS = ("scaled", "averaged", "exports")
"""Parts of plan.json that this section shows."""


def afterwards(record: Record) -> Html:
    """The curve of `hub scale`, the tables of `hub average` and `hub export`, as plan.json has them. Empty: none was done."""
    scaled, averaged, exports = (as_mapping(record.plan.get(name)) for name in KINDS)
    parts: list[Html] = []
    if scaled:
        rows = [{**point, "name": f"{point['alpha']:g}"} for point in scaled.get("curve") or []]
        chosen = f"{scaled['alpha']:g}"
        parts += [tag("h3", "Strength of the adapter"), _losses("strength", "cost", rows, chosen), _where(scaled)]
    if averaged:
        parts += [tag("h3", "Average"), _losses("model", "weight", averaged["models"], "average"), _where(averaged)]
    if exports:
        parts += [tag("h3", "Exports"), *_exports(exports)]
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


def _exports(found: Mapping[str, Any]) -> list[Html]:
    """A row for each export, with its check."""
    cells: list[list[Any]] = []
    for one in found["exports"]:
        check = as_mapping(one["check"])
        wrong = str(one.get("failed") or "")
        figures: list[Any] = ["-", "-", "-", tag("strong", f"failed: {wrong}") if wrong else "not compared"]
        if check:
            bound = f"{check['limit']:g} of change" if "limit" in check else f"{check['limit_nats']:g} nats"
            passed = "ok" if check["passed"] else tag("strong", f"failed: {check['differs'] or 'it is too far away'}")
            figures = [f"{check['kl']:.2g}", f"{check['ratio']:.2g}", bound, passed]
        cells.append([one["to"], one["kind"], f"{one['num_bytes'] / 2**20:,.1f} MiB", *figures, code(one["path"])])
    head = ("to", "kind", "size", "KL (nats per token)", "KL / change", "bound", "check", "where")
    meaning = "KL / change: 0 is the model that was trained, 1 is the model that training began with."
    return [table(Table(head, cells, frozenset(range(2, 6)))), note(meaning)]


def _where(made: Mapping[str, Any]) -> Html:
    gain = as_mapping(made.get("gain"))
    change = f"Held-out loss {gain['value']:+.4f} ({gain['low']:+.4f} to {gain['high']:+.4f}). " if gain else ""
    return note(change, "Written to ", code(made["path"]))
