"""What is around a run changes: the terminal goes, the clock jumps, links lie in the way, another one starts in its place."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from mmap import mmap
from pathlib import Path

from benchmarks.faults.process import Ended, Forks, stopped_at_step
from benchmarks.faults.verdict import Reference, Verdict, judge
from benchmarks.faults.writes import OPTIONS

WORDS = ("train", "algo=lora_sft", *OPTIONS, "algo.lora_dropout=0.1")
LINES = range(12)
"""Lines that are read before the reader of the output goes."""

STARTED = {"the same new run": ("run_name=mine",), "a run that is resumed": ("resume=latest",),
           "a run that begins or goes on": ("run_name=mine", "resume=auto")}  # fmt: skip
OF_A_RUN = ("run.yaml", "plan.json", "metrics.jsonl", "checkpoints", "result.json", "model")
JUMPS = {"a day ahead": 86400.0, "a day back": -86400.0, "to 1970": -1.7e9, "20 years ahead": 6.3e8}


@dataclass(frozen=True)
class Change:
    """One cell."""

    group: str
    name: str
    run: Callable[["Surroundings"], Verdict]


class Surroundings:
    """The cells of changes around a run."""

    def __init__(self, forks: Forks, folder: Path) -> None:
        self._forks, self._folder = forks, folder
        self._reference: Reference | None = None

    @property
    def reference(self) -> Reference:
        """What the undisturbed run leaves."""
        if self._reference is None:
            whole = self._new("whole")
            ended = self._forks.run(WORDS, whole)
            if ended.code != 0:
                raise SystemExit(f"the undisturbed run failed: {ended.err}")
            self._reference = Reference.of(whole / "runs" / "latest")
        return self._reference

    def cells(self, step: int) -> Iterator[Change]:
        """Every `step`-th cell."""
        cells = [*self._terminals(), *self._clocks(), *self._links(), *self._starters()]
        yield from cells[step - 1 :: step]

    def run(self, cell: Change) -> Verdict:
        """Run one cell."""
        return cell.run(self)

    def _terminals(self) -> Iterator[Change]:
        for name in ("stdout", "stderr", "both"):
            for kind in ("pipe", "terminal"):
                for lines in LINES:
                    yield Change(
                        f"the {kind} behind {name} goes",
                        f"after {lines} lines",
                        lambda self, name=name, kind=kind, lines=lines: self._without_reader(name, kind, lines),  # type: ignore[misc]
                    )

    def _clocks(self) -> Iterator[Change]:
        for words, seconds in JUMPS.items():
            for calls in (0, 40, 80, 160, 320):
                yield Change(
                    "the clock jumps",
                    f"{words}, at its call {calls}",
                    lambda self, seconds=seconds, calls=calls: self._jumps(seconds, calls),  # type: ignore[misc]
                )

        for words, seconds in JUMPS.items():
            for step in range(1, 6):
                yield Change(
                    "the clock jumps",
                    f"{words}, between a stop at step {step} and going on",
                    lambda self, seconds=seconds, step=step: self._later(seconds, step),  # type: ignore[misc]
                )

    def _links(self) -> Iterator[Change]:
        for name, prepare in LINKS.items():
            yield Change("links and names", name, lambda self, prepare=prepare: self._prepared(prepare))  # type: ignore[misc]
        for name in OF_A_RUN:
            yield Change("links and names", f"{name} of a run leads outside", lambda self, name=name: self._foreign(name))  # type: ignore[misc]

    def _starters(self) -> Iterator[Change]:
        for kind in STARTED:
            for delay in (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.2):
                yield Change(
                    "two at once",
                    f"{kind}, the second {delay:g} s later",
                    lambda self, kind=kind, delay=delay: self._twice(STARTED[kind], delay),  # type: ignore[misc]
                )

    def _without_reader(self, name: str, kind: str, lines: int) -> Verdict:
        reader, writer = os.openpty() if kind == "terminal" else os.pipe()

        def prepare() -> None:
            os.close(reader)
            for number in (1, 2) if name == "both" else (1 if name == "stdout" else 2,):
                os.dup2(writer, number)

        came = mmap(-1, 1)

        def read() -> None:
            text = b""
            with suppress(OSError):  # of a terminal whose last writer has ended before so many lines
                while text.count(b"\n") < lines and (piece := os.read(reader, 1)):
                    text += piece
            came[0] = text.count(b"\n") >= lines
            os.close(reader)

        thread = threading.Timer(0.05, read)  # after the fork: a forked process has no other thread

        def forked() -> None:
            os.close(writer)
            thread.start()

        verdict = self._plain(prepare, forked)
        thread.join()
        return replace(verdict, disturbed=bool(came[0]))

    def _jumps(self, seconds: float, calls: int) -> Verdict:
        came = mmap(-1, 1)
        return replace(self._plain(_jumping(seconds, calls, came)), disturbed=bool(came[0]))

    def _plain(self, prepare: Callable[[], None], forked: Callable[[], None] | None = None) -> Verdict:
        folder, reference = self._new("cell"), self.reference
        ended = self._forks.run(WORDS, folder, prepare=prepare, forked=forked)
        return judge(ended, _run(folder), reference, lambda run: self._go_on(folder, run), ())

    def _prepared(self, prepare: Callable[[Path], str]) -> Verdict:
        folder, reference = self._new("cell"), self.reference
        outside = self._new("outside")
        (outside / "mine").write_text("mine\n", encoding="utf-8")
        with_exit = prepare(folder)
        ended = self._forks.run(WORDS, folder)
        left = sorted(path.name for path in outside.iterdir())
        if left != ["mine"] or (outside / "mine").read_text(encoding="utf-8") != "mine\n":
            return Verdict(False, f"something was written outside: {left}", shown=ended.err)
        if with_exit == "refused":
            line = ended.err.strip()
            good = ended.code == 2 and line.startswith("hub: ") and "Traceback" not in line
            return Verdict(good, "refused in one line" if good else f"exit code {ended.code}", shown=line)
        return judge(ended, _run(folder), reference, lambda run: self._go_on(folder, run), (2,))

    def _stopped(self, step: int) -> Path:
        """The folder in which a run was stopped at one of its steps."""
        folder = self._new("cell")
        self._forks.run([*WORDS, "run_name=mine"], folder, prepare=stopped_at_step(step))
        return folder

    def _later(self, seconds: float, step: int) -> Verdict:
        reference, folder = self.reference, self._stopped(step)
        run = folder / "runs" / "mine"
        ended = self._forks.run([*WORDS, f"resume={run}"], folder, prepare=_jumping(seconds, 0))
        return judge(ended, run, reference, lambda run: self._go_on(folder, run), ())

    def _foreign(self, name: str) -> Verdict:
        """A run is resumed of which one entry is a link to a copy of it that lies outside."""
        folder, outside = self._stopped(3), self._new("outside")
        run = folder / "runs" / "mine"
        (run / name).rename(outside / name)
        (run / name).symlink_to(outside / name)
        before = _contents(outside)
        ended = self._forks.run([*WORDS, f"resume={run}"], folder)
        if _contents(outside) != before:
            return Verdict(False, "something was written outside", shown=ended.err)
        line = ended.err.strip()
        good = ended.code == 2 and line.startswith("hub: ") and "Traceback" not in line
        return Verdict(good, "refused in one line" if good else f"exit code {ended.code}", shown=line)

    def _twice(self, more: Sequence[str], delay: float) -> Verdict:
        reference = self.reference
        folder = self._new("cell") if "resume=latest" not in more else self._stopped(3)
        first = self._forks.start([*WORDS, *more], folder, "first")
        time.sleep(delay)
        second = self._forks.start([*WORDS, *more], folder, "second")
        ends = [first.wait(), second.wait()]
        shown = "\n".join(end.err for end in ends)
        if any(end.code is None or "Traceback" in end.err for end in ends):
            return Verdict(False, "traceback or hung", shown=shown)
        if all(end.code for end in ends):
            return Verdict(False, "none of the two was completed", shown=shown)
        if differs := reference.differs(folder / "runs" / "mine"):
            return Verdict(False, f"completed with {differs}", shown=shown)
        if not all(end.code == 0 for end in ends) and not any("hub: " in end.err for end in ends):
            return Verdict(False, "nothing is said", shown=shown)
        both = "the second found it completed" if all(end.code == 0 for end in ends) else "the other was refused in one line"
        return Verdict(True, f"one was completed, {both}")

    def _go_on(self, folder: Path, run: Path | None) -> Ended:
        begun = run is not None and any((run / "checkpoints").glob("step-*"))
        return self._forks.run([*WORDS, f"resume={run}"] if begun else WORDS, folder)

    def _new(self, name: str) -> Path:
        path = self._folder / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path


def _run(folder: Path) -> Path | None:
    runs = sorted(path for path in (folder / "runs").glob("*") if (path / "run.yaml").is_file() and not path.is_symlink())
    return runs[-1] if runs else None


def _contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _jumping(seconds: float, calls: int, came: mmap | None = None) -> Callable[[], None]:
    """Let the clock jump at one of the calls for the time, and note in shared memory that it has."""

    def prepare() -> None:
        real, asked = time.time, iter(range(10**9))

        def now() -> float:
            jumps = next(asked) >= calls
            if jumps and came is not None:
                came[0] = 1
            return real() + (seconds if jumps else 0.0)

        time.time = now

    return prepare


def _latest_is_a_folder(folder: Path) -> str:
    (folder / "runs" / "latest").mkdir(parents=True)
    return ""


def _latest_is_a_file(folder: Path) -> str:
    (folder / "runs").mkdir()
    (folder / "runs" / "latest").write_text("", encoding="utf-8")
    return ""


def _latest_leads_nowhere(folder: Path) -> str:
    (folder / "runs").mkdir()
    (folder / "runs" / "latest").symlink_to("gone")
    return ""


def _latest_leads_outside(folder: Path) -> str:
    (folder / "runs").mkdir()
    (folder / "runs" / "latest").symlink_to(folder.parent / "outside")
    return ""


def _runs_is_a_link(folder: Path) -> str:
    (folder / "elsewhere").mkdir()
    (folder / "runs").symlink_to("elsewhere")
    return ""


def _runs_is_a_file(folder: Path) -> str:
    (folder / "runs").write_text("", encoding="utf-8")
    return "refused"


def _runs_is_a_loop(folder: Path) -> str:
    (folder / "runs").symlink_to("runs")
    return "refused"


LINKS = {
    "latest is a folder": _latest_is_a_folder,
    "latest is a file": _latest_is_a_file,
    "latest leads nowhere": _latest_leads_nowhere,
    "latest leads outside": _latest_leads_outside,
    "runs is a link": _runs_is_a_link,
    "runs is a file": _runs_is_a_file,
    "runs is a link to itself": _runs_is_a_loop,
}
"""What is prepared in the folder before the run. `refused`: the run must be refused."""
