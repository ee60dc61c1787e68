"""The verb `export`: runs exporters in order, compares what they wrote with the model that was trained, puts it in place.

What can be wrong is checked before torch is imported. Files are written aside, and get their names when they are whole and have
passed.
"""

import json
import math
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from hub.errors import ConfigError, Interrupted, ModelError, first_line
from hub.models.finished import Asked
from hub.models.weights import local_weights
from hub.plugins.offers import Exporter
from hub.run import Run
from hub.system.files import write_json
from hub.system.signals import terminated_like_interrupted
from hub.system.space import free_space, is_full, size_text
from hub.tasks.export.card import write_cards
from hub.tasks.export.card_facts import facts_of
from hub.tasks.export.checks import problems_of
from hub.tasks.export.exporters import function_of, in_order, run_exporter
from hub.tasks.export.job import Delivered, Job, Written
from hub.tasks.export.places import aside_of, in_turn, put_in_place
from hub.tasks.export.result import Exports, num_bytes
from hub.tasks.export.room import check_room
from hub.tasks.export.shared_model import SharedModel
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
        Interrupted: Ctrl-C or SIGTERM. What was finished before stays.
    """
    options = asked.options
    assert isinstance(options, ExportOptions)
    asked = _as_typed(asked)
    if problems := list(problems_of(asked.cfg)):
        raise ConfigError(problems)
    out = _folder(asked, options)
    received: list[int] = []
    try:
        with terminated_like_interrupted() as received:
            return export_to(asked, out)
    except KeyboardInterrupt:
        number = received[0] if received else signal.SIGINT
        raise Interrupted(f"stopped: exports that were finished before are in {out}", number) from None
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
        if not is_full(error):
            raise
        raise ModelError(
            f"{out}: the disk is full ({size_text(free_space(out))} are free without what was half-written, which is removed). "
            "Free some, or type out=FOLDER on another disk"
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
    if not any(name.startswith("export.to") for name in of_run):
        wanted = wanted.without_unused({name.removeprefix("export.").partition("[")[0] for name in of_run})
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
    if options.out is not None:
        _refuse_to_replace(out, asked.cfg.export.to)
    return out


def _refuse_to_replace(out: Path, to: Sequence[str]) -> None:
    """Refuse to replace a folder that no export has written.

    Raises:
        ConfigError: there is one.
    """
    listed = {one["to"] for one in _earlier(out / FILE)}
    for name in (one.name for one in in_order(to) if one.name not in listed):
        if (out / name).is_symlink() or (out / name).is_file() or ((out / name).is_dir() and any((out / name).iterdir())):
            raise ConfigError(f"out={out}: {out / name} exists, and no export wrote it. Type out=FOLDER, a new one")


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
            function_of(exporter.ready)(asked)
    if not any(exporter.writes_model for exporter in ordered):
        return _passed_on(asked, out, ordered, tiny)
    base = local_weights(asked.model.base, say)
    check_room(asked.cfg.export, {one.name for one in ordered}, base, out)
    say(f"hub: loading {asked.model.name}, which exports are compared with")  # torch takes seconds to import
    from hub.tasks.export.tuned import open_tuned

    with aside_of(out) as aside, open_tuned(asked, aside, say) as tuned:
        done: dict[str, list[Delivered]] = {}
        wanted = asked.cfg.export.to
        what = tuned.reference.what if tuned.reference is not None else ""
        model = SharedModel(aside / (MERGED if MERGED in wanted else "model"), tuned.merge)
        for number, exporter in enumerate(ordered):
            placed = _placed(done)
            job = Job(
                asked=asked,
                out=aside / exporter.name,
                final=out / exporter.name,
                merged=placed or model.whole,
                settings=placed or model.settings,
                let_go=_nothing if MERGED in wanted or any(map(_reads_weights, ordered[number + 1 :])) else model.let_go,
                rows=tuned.training_rows,
                tokenizer=tuned.tokenizer,
                done=done,
                say=say,
                check=partial(_check_step, exporter.name, tuned.reference, asked.cfg.export.force, tiny),
                look=partial(_checked, exporter.name, reference=tuned.reference, tiny=tiny),
                tiny=tiny,
            )
            done[exporter.name] = _run(exporter, job, tuned.reference)
            found = Exports([one for several in done.values() for one in several], out, what, tuned.notes)
            _write_down(asked, found)  # the next one may fail
        return found


def _passed_on(asked: Asked, out: Path, ordered: list[Exporter], tiny: bool) -> Exports:
    """Run exporters that write no model: it is not loaded."""
    done: dict[str, list[Delivered]] = {}
    nothing: Any = None
    with aside_of(out) as aside:
        for one in ordered:
            job = Job(
                asked=asked,
                out=aside / one.name,
                final=out / one.name,
                merged=nothing,
                settings=nothing,
                let_go=nothing,
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


def _nothing() -> None:
    """Keep the weights."""


def _reads_weights(exporter: Exporter) -> bool:
    """Whether an exporter may read the merged weights: those that build on another's files do not."""
    return exporter.writes_model and not exporter.brings


def _placed(done: dict[str, list[Delivered]]) -> Callable[[], Path] | None:
    """The merged model, if it was exported itself and has its place already."""
    places = [one.path for one in done.get(MERGED, ())]
    return (lambda: places[0]) if places else None


def _run(exporter: Exporter, job: Job, reference: "Reference | None") -> list[Delivered]:
    """Run one exporter, check what it wrote, and put it in its place."""
    job.out.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    say(f"hub: {exporter.name}: {exporter.summary}")
    written = run_exporter(exporter, job)
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
            failed=one.failed,
            note=one.note,
            made_by=one.made_by,
        )
        for one, check in checked
    ]
    if exporter.writes_model:
        write_cards(job.out, final, facts_of(job.asked), delivered)
    with in_turn(final.parent):
        put_in_place(job.out, final)
    return delivered


def _check_step(
    exporter: str, reference: "Reference | None", force: bool, tiny: bool, written: Written
) -> dict[str, Any] | None:
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


def _checked(exporter: str, written: Written, reference: "Reference | None", tiny: bool) -> dict[str, Any] | None:
    from hub.tasks.export.gate import check

    opened = written.open
    if opened is None or reference is None:
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
    figures = [f"{check['ratio']:.2g}"] if check is not None and not check["passed"] else []
    figures += [written.figure] if written.failed else []
    if not figures:
        return written.path.name
    mark = f"-differs-{'-'.join(figures)}"
    path = written.path
    return f"{path.name}{mark}" if path.is_dir() else f"{path.stem}{mark}{path.suffix}"


def _write_down(asked: Asked, found: Exports) -> None:
    """Write export.json, and the same into plan.json of the run."""
    names = {one.exporter for one in found.exports}
    file = found.path / FILE
    with in_turn(found.path):
        values = found.as_json()
        values["exports"] = [*(one for one in _earlier(file) if one["to"] not in names), *values["exports"]]
        write_json(file, values)
        if asked.model.run_path is not None:
            try:
                Run(asked.model.run_path).write_plan(exports=values)
            except (OSError, ValueError) as error:  # the export is whole, and the run may be somebody else's
                say(f"hub: {asked.model.run_path}/plan.json does not tell of it ({first_line(error)}). {file} does")


def _earlier(file: Path) -> list[dict[str, Any]]:
    """Exports that are written down already and still there. A file that can't be read has none."""
    try:
        listed: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["exports"]
        return [one for one in listed if Path(one["path"]).exists() or one["to"] == "hub"]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def say(line: str) -> None:
    """Show a line to the user."""
    print(line, flush=True)
