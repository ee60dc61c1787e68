"""The exporters: the hub's own, each a folder here, and those of plugins. Nothing here imports torch."""

from collections.abc import Sequence

from hub.errors import did_you_mean
from hub.plugins.offers import Exporter
from hub.plugins.registry import registry
from hub.tasks.export.compressed.exporter import EXPORTER as COMPRESSED
from hub.tasks.export.gguf.exporter import EXPORTER as GGUF
from hub.tasks.export.hub.exporter import EXPORTER as HUB
from hub.tasks.export.merged.exporter import EXPORTER as MERGED
from hub.tasks.export.ollama.exporter import EXPORTER as OLLAMA

_OWN = (MERGED, GGUF, OLLAMA, COMPRESSED, HUB)


def exporters() -> dict[str, Exporter]:
    """All exporters by name, the hub's own first."""
    return {one.name: one for one in _OWN} | registry().exporters


def problems_of_names(to: Sequence[str]) -> list[str]:
    """A line for each name that is no exporter, or is there twice."""
    known = exporters()
    lines = [
        f"export.to={name}: there is no such exporter. Allowed: {', '.join(known)}.{did_you_mean(name, known)}"
        for name in dict.fromkeys(to)
        if name not in known
    ]
    lines += [f"export.to={name} is there twice. Leave one out" for name in dict.fromkeys(to) if list(to).count(name) > 1]
    return lines


def in_order(to: Sequence[str]) -> list[Exporter]:
    """The exporters that are asked for and those that they bring, each behind those that it follows."""
    known = exporters()
    wanted: dict[str, Exporter] = {}

    def want(name: str) -> None:
        if name not in wanted:
            wanted[name] = known[name]
            for other in known[name].brings:
                want(other)

    for name in to:
        want(name)
    order: list[Exporter] = []

    def place(one: Exporter) -> None:
        if one in order:
            return
        for name in (*one.brings, *one.after):
            if name in wanted and wanted[name] is not one:
                place(wanted[name])
        order.append(one)

    for name in known:
        if name in wanted:
            place(wanted[name])
    return order
