"""What `export` found: a line for each export, with its check."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hub.system.space import size_text
from hub.tables import as_columns, as_html
from hub.tasks.export.job import Delivered


@dataclass(repr=False)
class Exports:
    """The exports of one call. In a terminal and in a notebook it is a table."""

    exports: list[Delivered]
    path: Path
    """Folder of all exports."""

    on: str = ""
    """What they were compared on."""

    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {"path": str(self.path), "on": self.on, "exports": [as_values(one) for one in self.exports], "notes": self.notes}

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        rows = []
        for one in self.exports:
            check = one.check
            figures = ["-", "-", "-", "not compared"]
            if check is not None:
                bound = f"{check['limit']:g}" if "limit" in check else f"{check['limit_nats']:g} nats"
                figures = [f"{check['kl']:.2g}", f"{check['ratio']:.2g}", bound, "ok" if check["passed"] else "FAILED"]
            rows.append([one.exporter, one.kind, size_text(one.num_bytes), *figures, f"{one.seconds:.0f} s"])
        return ["to", "kind", "size", "KL, nats", "of the change", "bound", "check", "time"], rows

    def __repr__(self) -> str:
        head, rows = self._cells()
        lines = [*as_columns([head, *rows]), ""]
        readers = {one.check["reader"] for one in self.exports if one.check is not None}
        if readers:
            lines.append(f"compared on {self.on}, read by {', '.join(sorted(readers))}")
        lines += [f"{one.exporter} {one.kind}: {one.note}" for one in self.exports if one.note]
        return "\n".join([*lines, *self.notes, *(str(one.path) for one in self.exports)])

    def _repr_html_(self) -> str:
        head, rows = self._cells()
        return as_html(rows, head)


def as_values(one: Delivered) -> dict[str, Any]:
    """An export as values for JSON."""
    return {
        "to": one.exporter,
        "kind": one.kind,
        "path": str(one.path),
        "num_bytes": one.num_bytes,
        "seconds": round(one.seconds, 3),
        "check": one.check,
        "note": one.note,
        "made_by": dict(one.made_by),
    }


def num_bytes(path: Path) -> int:
    """Bytes of a file, or of all files in a folder. A file with two names counts once."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    found = {(stat.st_dev, stat.st_ino): stat.st_size for stat in (file.stat() for file in files)}
    return sum(found.values())


def total(exports: Sequence[Delivered]) -> int:
    """Bytes of all exports."""
    return sum(one.num_bytes for one in exports)
