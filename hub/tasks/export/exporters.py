"""The exporters: the hub's own, each a folder here, and those of plugins. Nothing here imports torch."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from hub.errors import HubError, PluginError, did_you_mean, one_line
from hub.plugins.offers import Exporter
from hub.plugins.registry import registry
from hub.system.space import is_full
from hub.tasks.export.compressed.exporter import EXPORTER as COMPRESSED
from hub.tasks.export.gguf.exporter import EXPORTER as GGUF
from hub.tasks.export.hub.exporter import EXPORTER as HUB
from hub.tasks.export.job import Job, Written
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


def function_of(named: str | Callable[..., Any]) -> Callable[..., Any]:
    """A function, or the one of the name `module:function`."""
    if not isinstance(named, str):
        return named
    module, _, name = named.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), name)
    return found


def run_exporter(exporter: Exporter, job: Job) -> list[Written]:
    """Run an exporter, and check what it returns: a plugin may do whatever it likes.

    Raises:
        HubError: what it raised, or how a plugin broke its contract.
    """
    is_own = exporter in _OWN
    try:
        written = function_of(exporter.function)(job)
    except HubError:
        raise
    except Exception as error:
        if is_own or is_full(error):
            raise
        raise PluginError(
            f"export.to={exporter.name}: the plugin's exporter failed ({one_line(error)}). Nothing of it is written"
        ) from error
    if problem := _problem_of(written, job):
        raise PluginError(f"export.to={exporter.name}: the exporter {problem}. Nothing of it is written. Tell its author")
    return list(written)


def _problem_of(written: Any, job: Job) -> str | None:
    """How what an exporter returned breaks its contract. None: it does not."""
    if not isinstance(written, list | tuple) or not written:
        return f"returned {written!r}, and not a list of what it wrote"
    folder = job.out.resolve()
    for one in written:
        if not isinstance(one, Written):
            return f"returned {type(one).__name__} in its list, and not hub.tasks.export.job.Written"
        if not one.path.exists():
            return f"returned {one.path.name}, which it has not written"
        if not one.path.resolve().is_relative_to(folder):
            return f"returned {one.path}, which is not in the folder of its job"
    return None
