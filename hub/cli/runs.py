"""`python -m hub runs`: lists the run folders in a folder, and removes old ones.

Only folders that hold a run are listed or removed, and links are never followed. A sweep counts as one run.
"""

import json
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hub.errors import ConfigError
from hub.launch.lock import Holder
from hub.system.processes import folders_on_command_lines

DEFAULT_FOLDER = "runs"
WHOLE_NAME = 32
"""Characters of a run's name that are never broken."""

QUIET_SECONDS = 24 * 3600.0
"""A run without a result may be running, here or on another machine, if a file in it is newer than this."""
RUNNING, UNFINISHED, KILLED = "running", "unfinished", "killed"
"""Status of a run without a result: a process has its lock; a file in it is new, and nobody is known to have died; neither."""


@dataclass(frozen=True)
class Entry:
    """One run, or one sweep."""

    name: str
    path: Path
    started: float
    """Seconds since 1970."""

    algo: str
    model: str
    """The value of `model.path`."""

    status: str
    train_loss: float | None
    eval_loss: float | None
    num_steps: int | None
    seconds: float | None
    size: int
    """Bytes, without what links point to."""

    latest: bool
    has_model: bool
    """Whether it holds a model or a checkpoint. `verify`, and what fails before its first checkpoint, leave none."""

    num_runs: int = 1
    """Number of runs of a sweep."""

    @property
    def may_run(self) -> bool:
        return self.status in (RUNNING, UNFINISHED)

    @property
    def loss(self) -> float | None:
        """The held-out loss, else the training loss."""
        return self.train_loss if self.eval_loss is None else self.eval_loss


def list_runs(folder: str, as_json: bool) -> int:
    """Print the runs in a folder, the newest first. Returns the exit code."""
    entries = read_runs(folder)
    if as_json:
        print(json.dumps([asdict(entry) for entry in entries], indent=2, default=str))
    elif not entries:
        print(f"there is no run in the folder {folder}; for another type hub runs FOLDER")
    else:
        _print_table(entries)
        print(
            f"{_count(entries)}, {_size(sum(entry.size for entry in entries))}. * is the latest. loss: held-out, else training"
        )
    return 0


def remove_runs(folder: str, keep: int, confirmed: bool) -> int:
    """Remove all runs but the newest, or list what would go. Returns the exit code.

    Args:
        folder: where the runs are.
        keep: how many to keep, of those with a model and of the others each, so that these displace no model. Kept in addition:
            the latest, what may be running, and runs whose model a kept run uses.
        confirmed: without it nothing is removed.
    """
    entries = read_runs(folder)
    gone, spared = _to_remove(entries, keep)
    for entry, why in spared:
        print(f"kept: {entry.name}, {why}")
    if not gone:
        print(f"nothing to remove: {_count(entries)} in {folder}, --keep {keep}")
        return 0
    size = _size(sum(entry.size for entry in gone))
    if not confirmed:
        _print_table(gone)
        command = "hub runs" if folder == DEFAULT_FOLDER else f"hub runs {folder}"
        print(f"{_count(gone)} of {len(entries)}, {size}, would go. To remove them type: {command} --keep {keep} --yes")
        return 0
    for entry in gone:
        if entry.path.is_symlink():
            continue
        try:
            shutil.rmtree(entry.path)
        except OSError as error:
            raise ConfigError(f"{entry.path}: can't be removed ({error.strerror or error})") from None
        print(f"removed {entry.path}")
    print(f"removed {_count(gone)}, {size}")
    return 0


def _to_remove(entries: list[Entry], keep: int) -> tuple[list[Entry], list[tuple[Entry, str]]]:
    """What to remove, and what is kept besides the newest, with the reason."""
    kept: list[Entry] = []
    for has_model in (True, False):
        kept += [entry for entry in entries if entry.has_model == has_model][:keep]
    gone: list[Entry] = []
    spared: list[tuple[Entry, str]] = []
    for entry in entries:
        if entry in kept:
            continue
        if entry.latest:
            spared.append((entry, "which latest points to"))
        elif entry.may_run:
            spared.append((entry, f"which is {entry.status} and may still be written to"))
        else:
            gone.append(entry)
    kept += [entry for entry, _ in spared]
    while needed := [(entry, user) for entry in gone for user in kept if _uses(user, entry)]:
        entry, user = needed[0]
        spared.append((entry, f"whose model {user.name} trained on"))
        gone.remove(entry)
        kept.append(entry)
    return gone, spared


def _uses(user: Entry, entry: Entry) -> bool:
    """Whether a run trained on the model of another."""
    return f"{user.model}/".startswith(f"{entry.path}/")


def read_runs(folder: str) -> list[Entry]:
    """The runs in a folder, the newest first.

    Raises:
        ConfigError: there is no such folder, or it can't be read.
    """
    place = Path(os.path.realpath(os.path.expanduser(folder)))
    if not place.exists() and folder == DEFAULT_FOLDER:
        return []
    if not place.is_dir():
        raise ConfigError(f"there is no folder {folder}. Type hub runs FOLDER with the output_dir of your runs")
    latest = os.path.realpath(place / "latest")
    in_use = folders_on_command_lines()
    try:
        folders = [Path(item.path) for item in os.scandir(place) if item.is_dir(follow_symlinks=False)]
    except OSError as error:
        raise ConfigError(f"{folder}: this folder can't be read ({error.strerror})") from None
    entries = []
    for path in folders:
        is_latest = str(path) == latest
        if (path / "run.yaml").is_file():
            entries.append(_run(path, is_latest, in_use))
        elif jobs := [file.parent for file in path.glob("*/overrides.json") if (file.parent / "run.yaml").is_file()]:
            entries.append(_sweep(path, jobs, is_latest, in_use))
    return sorted(entries, key=lambda entry: (entry.started, entry.name), reverse=True)


def _run(path: Path, latest: bool, in_use: set[str]) -> Entry:
    size, newest = _measure(path)
    started = (path / "run.yaml").stat().st_mtime
    try:
        result: dict[str, Any] = json.loads((path / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        result = {}
    status = result.get("status")
    if status is None:
        is_new = time.time() - newest < QUIET_SECONDS
        holder = Holder.of(path)
        if str(path) in in_use or (holder is not None and holder.is_alive(path)):
            status = RUNNING
        else:  # a holder of this machine that is dead can't come back
            status = UNFINISHED if is_new and not (holder is not None and holder.is_here) else KILLED
    return Entry(
        name=path.name,
        path=path,
        started=started,
        algo=result.get("algo") or _from_config(path, "algo", "name"),
        model=result.get("model") or _from_config(path, "model", "path"),
        status=status,
        train_loss=result.get("train_loss"),
        eval_loss=result.get("eval_loss"),
        num_steps=result.get("num_steps"),
        seconds=result.get("seconds"),
        size=size,
        latest=latest,
        has_model=any(True for part in ("model/*", "checkpoints/step-*") for _ in path.glob(part)),
    )


def _sweep(path: Path, jobs: list[Path], latest: bool, in_use: set[str]) -> Entry:
    """A sweep as one entry, with the best of its losses."""
    runs = [_run(job, False, in_use) for job in jobs]
    best = min((run for run in runs if run.loss is not None), key=lambda run: run.loss or 0.0, default=runs[0])
    states = [run.status for run in runs]
    not_done = next((state for state in (RUNNING, UNFINISHED, KILLED, "failed", "interrupted") if state in states), states[0])
    size, _ = _measure(path)
    return Entry(
        name=path.name,
        path=path,
        started=min(run.started for run in runs),
        algo=best.algo,
        model=best.model,
        status=not_done,
        train_loss=best.train_loss,
        eval_loss=best.eval_loss,
        num_steps=best.num_steps,
        seconds=sum(run.seconds or 0.0 for run in runs),
        size=size,
        latest=latest,
        has_model=any(run.has_model for run in runs),
        num_runs=len(runs),
    )


def _from_config(path: Path, section: str, name: str) -> str:
    """An option of run.yaml, found in its lines: reading the whole of it takes longer than all the rest."""
    inside = False
    try:
        lines = (path / "run.yaml").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return ""
    for line in lines:
        if not line.startswith(" "):
            inside = line == f"{section}:"
        elif inside and line.startswith(f"  {name}: "):
            return line.partition(": ")[2].strip("'\"")
    return ""


def _measure(path: Path) -> tuple[int, float]:
    """Bytes of all files, and the time of the newest. Links count as themselves."""
    size, newest = 0, path.stat().st_mtime
    for folder, _, files in os.walk(path):
        for file in files:
            try:
                state = os.lstat(os.path.join(folder, file))
            except OSError:  # removed meanwhile
                continue
            size, newest = size + state.st_size, max(newest, state.st_mtime)
    return size, newest


def _print_table(entries: Iterable[Entry]) -> None:
    listed, now = list(entries), time.time()
    names = [f"{entry.name}{' *' if entry.latest else ''}" for entry in listed]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("run", "age", "what", "status", "loss", "size"):
        # A name is copied. So it stays in one piece, if it is not much longer than one by date and time.
        least = min(max(map(len, names), default=0), WHOLE_NAME) if column == "run" else None
        table.add_column(column, overflow="fold", no_wrap=column not in ("run", "what"), justify="left", min_width=least)
    for entry, name in zip(listed, names, strict=True):
        model = Path(entry.model).name if entry.model.startswith("/") else entry.model
        what = f"{entry.algo} {model}" if entry.num_runs == 1 else f"{entry.num_runs} x {entry.algo} {model}"
        loss = "" if entry.loss is None else f"{entry.loss:.4g}"
        cells = [name, _age(now - entry.started), what, entry.status, loss]
        table.add_row(*(Text(cell) for cell in (*cells, _size(entry.size))))
    console = Console()
    (console if console.is_terminal else Console(width=100)).print(table)


def _count(entries: list[Entry]) -> str:
    return f"{len(entries)} run" + ("" if len(entries) == 1 else "s")


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


def _size(num_bytes: int) -> str:
    """A size with its unit, 1 kB = 1000 bytes."""
    size = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 10 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
