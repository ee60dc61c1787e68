"""The verb `export`: runs exporters in order, compares what they wrote with the model that was trained, puts it in place.

What can be wrong is checked before torch is imported. Files are written aside, and get their names when they are whole and have
passed.
"""

import errno
import json
import math
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hub.errors import ConfigError, Interrupted, ModelError
from hub.models.finished import Asked
from hub.plugins.offers import Exporter
from hub.run import Run
from hub.system.files import write_json
from hub.tasks.export.card import write_cards
from hub.tasks.export.card_facts import facts_of
from hub.tasks.export.checks import problems_of
from hub.tasks.export.exporters import in_order
from hub.tasks.export.job import Delivered, Job, Written
from hub.tasks.export.result import Exports, num_bytes, size_text
from hub.tasks.export.verb import ExportOptions

if TYPE_CHECKING:
    from hub.tasks.export.gate import Reference

FILE = "export.json"
MERGED = "merged"


def export(asked: Asked) -> Exports:
    """Export the model that is asked for.

    Returns:
        What was written, with its check.

    Raises:
        HubError: what can't be exported, or which export is not the model that was trained, one line each.
        Interrupted: Ctrl-C. What was finished before stays.
    """
    options = asked.options
    assert isinstance(options, ExportOptions)
    asked = _as_typed(asked)
    if problems := list(problems_of(asked.cfg)):
        raise ConfigError(problems)
    out = _folder(asked, options)
    try:
        return export_to(asked, out)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped: exports that were finished before are in {out}", signal.SIGINT) from None
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        free = shutil.disk_usage(out).free
        raise ModelError(
            f"{out}: the disk is full ({size_text(free)} are free), and nothing half-written stays. Free some, or type "
            "out=FOLDER on another disk"
        ) from None


def _as_typed(asked: Asked) -> Asked:
    """Without options of the run that are for another exporter than those that were typed.

    Raises:
        ConfigError: the run names a program, which runs only if its user has typed it.
    """
    wanted, of_run = asked.cfg.export, asked.from_run
    if wanted.python is not None and "export.python" in of_run:
        if "compressed" in wanted.to:
            raise ConfigError(
                f"export.python={wanted.python}: the config of the run names a program, which is run only if you type it. Type "
                f"python={wanted.python} if you trust it"
            )
        wanted = replace(wanted, python=None)
    if "hub" not in wanted.to and any(name.startswith("export.to") for name in of_run) is False:
        fresh = type(wanted)()
        left = {name: getattr(fresh, name) for name in ("repo", "private") if f"export.{name}" in of_run}
        wanted = replace(wanted, **left)
    return replace(asked, cfg=replace(asked.cfg, export=wanted))


def _folder(asked: Asked, options: ExportOptions) -> Path:
    """The folder of all exports."""
    finished = asked.model
    if options.out is not None:
        out = Path(options.out).expanduser().absolute()
    elif finished.run_path is not None:
        out = finished.run_path / "exports"
    elif finished.adapter is not None:
        out = finished.adapter.parent / f"{finished.adapter.name}-exports"
    else:
        raise ConfigError(f"{finished.name} is no run. Type out=FOLDER")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out={out}: this is a file. Type out=FOLDER")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out):
            pass
    except OSError as error:
        raise ConfigError(f"{out}: can't write there ({error.strerror}). Type out=FOLDER in a writable folder") from None
    return out


def export_to(asked: Asked, out: Path, tiny: bool = False) -> Exports:
    """Run all exporters that are asked for.

    Args:
        asked: what is exported, checked.
        out: an existing folder.
        tiny: whether this is the trial before training.

    Raises:
        HubError: what can't be exported, one line each.
    """
    ordered = in_order(asked.cfg.export.to)
    for exporter in ordered:
        if exporter.ready is not None:
            _called(exporter.ready)(asked)
    if not any(exporter.writes_model for exporter in ordered):
        return _passed_on(asked, out, ordered, tiny)
    say(f"hub: loading {asked.model.name}, which exports are compared with")  # torch takes seconds to import
    from hub.tasks.export.tuned import open_tuned

    with _aside(out) as aside, open_tuned(asked, aside, say) as tuned:
        done: dict[str, list[Delivered]] = {}
        wanted = asked.cfg.export.to
        merged = cache(lambda: tuned.merge(aside / (MERGED if MERGED in wanted else "model")))
        for exporter in ordered:
            job = Job(
                asked=asked,
                out=aside / exporter.name,
                final=out / exporter.name,
                merged=_merged_in_place(done) or merged,
                rows=tuned.training_rows,
                tokenizer=tuned.tokenizer,
                done=done,
                say=say,
                check=partial(_check_step, exporter.name, tuned.reference, asked.cfg.export.force, tiny),
                tiny=tiny,
            )
            done[exporter.name] = _run(exporter, job, tuned.reference)
            found = Exports([one for several in done.values() for one in several], out, tuned.reference.what, tuned.notes)
            _write_down(asked, found)  # the next one may fail
        return found


def _passed_on(asked: Asked, out: Path, ordered: list[Exporter], tiny: bool) -> Exports:
    """Run exporters that write no model: it is not loaded."""
    done: dict[str, list[Delivered]] = {}
    nothing: Any = None
    with _aside(out) as aside:
        for one in ordered:
            job = Job(
                asked=asked,
                out=aside / one.name,
                final=out / one.name,
                merged=nothing,
                rows=lambda count: [],
                tokenizer=nothing,
                done=done,
                say=say,
                tiny=tiny,
            )
            done[one.name] = _run(one, job, nothing)
        found = Exports([one for several in done.values() for one in several], out)
        _write_down(asked, found)
        return found


def _merged_in_place(done: dict[str, list[Delivered]]) -> Any:
    """The merged model, if it was exported itself and has its place already."""
    places = [one.path for one in done.get(MERGED, ())]
    return (lambda: places[0]) if places else None


def _run(exporter: Exporter, job: Job, reference: "Reference") -> list[Delivered]:
    """Run one exporter, check what it wrote, and put it in its place."""
    job.out.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    say(f"hub: {exporter.name}: {exporter.summary}")
    written: list[Written] = _called(exporter.function)(job)
    seconds = (time.monotonic() - begin) / max(1, len(written))
    checked = [(one, _checked(exporter.name, one, reference, job.tiny)) for one in written]
    failed = [(one, check) for one, check in checked if check is not None and not check["passed"]]
    if failed and not job.cfg.force:
        raise ModelError("\n".join(failure_line(exporter.name, one, check) for one, check in failed))
    for one, check in failed:
        say(f"hub: {failure_line(exporter.name, one, check)}")
    sizes = {one.path: num_bytes(one.path) for one, _ in checked}
    final = job.final
    places: dict[Path, Path] = {}
    for one, found in checked:
        name = _name(one, found)
        if one.path == job.out:  # the folder is the export
            final = final.with_name(final.name + name.removeprefix(one.path.name))
        elif one.path.name != name:
            one.path.rename(one.path.with_name(name))
        places[one.path] = one.path.relative_to(job.out).with_name(name) if one.path != job.out else Path()
    delivered = [
        Delivered(
            exporter=exporter.name,
            kind=one.kind,
            path=final / places[one.path],
            num_bytes=sizes[one.path],
            seconds=seconds,
            check=check,
            note=one.note,
            made_by=one.made_by,
        )
        for one, check in checked
    ]
    if exporter.writes_model:
        write_cards(job.out, final, facts_of(job.asked), delivered)
    put_in_place(job.out, final)
    return delivered


def _check_step(exporter: str, reference: "Reference", force: bool, tiny: bool, written: Written) -> dict[str, Any] | None:
    """Check something that is not delivered.

    Raises:
        ModelError: it is not the model that was trained, and this is not forced.
    """
    found = _checked(exporter, written, reference, tiny)
    if found is not None and not found["passed"]:
        if not force:
            raise ModelError(failure_line(exporter, written, found))
        say(f"hub: {failure_line(exporter, written, found)}")
    return found


def _checked(exporter: str, written: Written, reference: "Reference", tiny: bool) -> dict[str, Any] | None:
    from hub.tasks.export.gate import check

    opened = written.open
    if opened is None:
        return None
    if tiny and written.limit_nats is not None:
        written = replace(written, limit_nats=math.inf)  # bounds are for whole models
    say(f"hub: {exporter} {written.kind}: read again and compared on {len(reference.rows)} {reference.what}")
    with opened() as reader:
        return check(reference, written, reader, say)


def failure_line(exporter: str, written: Written, check: dict[str, Any]) -> str:
    """The line on an export that is not the model that was trained."""
    bound = f"{check['limit']:g} of what training changed" if "limit" in check else f"{check['limit_nats']:g} nats per token"
    found = f"{check['ratio']:.3g} of what training changed ({check['kl']:.3g} nats per token)"
    why = f" First difference: {check['differs']}." if check["differs"] else ""
    return (
        f"{exporter} {written.kind}: this is not the model that was trained. It is {found} away from it, allowed is "
        f"{bound}.{why} Nothing is written. To keep it anyway, with this figure in its name, type --force"
    )


def _name(written: Written, check: dict[str, Any] | None) -> str:
    """The name of an export. If it failed its check, the name has the figure."""
    if check is None or check["passed"]:
        return written.path.name
    mark = f"-differs-{check['ratio']:.2g}"
    path = written.path
    return f"{path.name}{mark}" if path.is_dir() else f"{path.stem}{mark}{path.suffix}"


def put_in_place(made: Path, final: Path) -> None:
    """Give a whole folder its name. The one that had it before is removed when the new one is there."""
    before = final.with_name(f".{final.name}.before")
    shutil.rmtree(before, ignore_errors=True)
    if final.exists():
        final.rename(before)
    try:
        made.rename(final)
    except OSError:
        if before.exists():
            before.rename(final)
        raise
    shutil.rmtree(before, ignore_errors=True)


@contextmanager
def _aside(out: Path) -> Iterator[Path]:
    """A folder for what is not whole yet. It is removed in any case."""
    for left in out.glob(".partial-*"):
        shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(dir=out, prefix=".partial-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_down(asked: Asked, found: Exports) -> None:
    """Write export.json, and the same into plan.json of the run."""
    names = {one.exporter for one in found.exports}
    file = found.path / FILE
    before: list[dict[str, Any]] = []
    if file.is_file():
        before = [one for one in json.loads(file.read_text(encoding="utf-8"))["exports"] if one["to"] not in names]
    values = found.as_json()
    values["exports"] = [*before, *values["exports"]]
    write_json(file, values)
    if asked.model.run_path is not None:
        Run(asked.model.run_path).write_plan(exports=values)


def _called(function: str | Callable[..., Any]) -> Any:
    """A function, or the one of the name `module:function`."""
    if not isinstance(function, str):
        return function
    module, _, name = function.partition(":")
    return getattr(import_module(module), name)


def say(line: str) -> None:
    """Show a line to the user."""
    print(line, flush=True)
