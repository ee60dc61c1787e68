"""What `export` found: a line for each export, with its check."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from shlex import quote
from typing import Any

from hub.system.space import size_text
from hub.tables import as_columns, as_html
from hub.tasks.export.job import Delivered

_MEANING = "KL / change: 0 is the model that was trained, 1 is the model that training began with."


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
            figures = ["-", "-", "-", "FAILED" if one.failed else "not compared"]
            if check is not None:
                bound = f"{check['limit']:g} of change" if "limit" in check else f"{check['limit_nats']:g} nats"
                figures = [f"{check['kl']:.2g}", f"{check['ratio']:.2g}", bound, "ok" if check["passed"] else "FAILED"]
            rows.append([one.exporter, one.kind, size_text(one.num_bytes), *figures, f"{one.seconds:.0f} s"])
        return ["to", "kind", "size", "KL (nats per token)", "KL / change", "bound", "check", "time"], rows

    def __repr__(self) -> str:
        head, rows = self._cells()
        lines = [*as_columns([head, *rows]), ""]
        readers = {one.check["reader"] for one in self.exports if one.check is not None}
        if readers:
            by = ", ".join(sorted(readers))
            lines += [f"Compared on {self.on} with the model that was trained. Read by {by}.", _MEANING]
        lines += [f"{one.exporter} {one.kind}: {one.note}" for one in self.exports if one.note]
        lines += self.notes
        for one in self.exports:
            lines += ["", f"{one.exporter} {one.kind}: {one.path}"]
            lines += [f"  {command}" for command in commands(one)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head, rows = self._cells()
        places = [[f"{one.exporter} {one.kind}", str(one.path), " ".join(commands(one)[:1])] for one in self.exports]
        lines = [f"{one.exporter} {one.kind}: {one.note}" for one in self.exports if one.note] + self.notes
        below = "".join(f"<p>{escape(line)}</p>" for line in [_MEANING, *lines])
        return as_html(rows, head) + below + as_html(places, ["export", "where", "type"])


def commands(one: Delivered) -> list[str]:
    """What to type to use an export, one for each program. Empty: this is not known, such as for a plugin's."""
    place = quote(str(one.path))
    if one.exporter == "merged":
        return [f"python -m hub chat model.path={place}", f"vllm serve {place}"]
    if one.exporter == "gguf":
        return [f"llama-cli -m {place} -cnv", f"llama-server -m {place}"]
    if one.exporter == "compressed":
        return [f"vllm serve {place}"]
    if one.exporter == "ollama":
        files = sorted(file.name for file in one.path.glob("Modelfile*"))
        return [f"cd {place} && ollama create mymodel -f {file} && ollama run mymodel" for file in files]
    return []


def as_values(one: Delivered) -> dict[str, Any]:
    """An export as values for JSON."""
    return {
        "to": one.exporter,
        "kind": one.kind,
        "path": str(one.path),
        "num_bytes": one.num_bytes,
        "seconds": round(one.seconds, 3),
        "check": one.check,
        "failed": one.failed,
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
