"""Signals at many moments of a run, to each of its processes and to all at once, as shells, schedulers and kills send them."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.faults.process import LIMIT_SECONDS, Ended
from benchmarks.faults.verdict import Reference, Verdict, judge
from benchmarks.faults.writes import OPTIONS

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGKILL, signal.SIGQUIT,
           signal.SIGABRT, signal.SIGSEGV)  # fmt: skip
SECOND = ((signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGTERM), (signal.SIGHUP, signal.SIGTERM),
          (signal.SIGUSR1, signal.SIGTERM), (signal.SIGINT, signal.SIGKILL), (signal.SIGTERM, signal.SIGKILL))  # fmt: skip
"""A signal and the one that follows it, to the launcher and to all."""

HANDLED = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
"""Signals that a run answers. By any other one a process is gone."""

GAP_SECONDS, PAUSE_SECONDS = 0.1, 1.0
"""From one signal to the next, and from SIGSTOP to SIGCONT: a machine that sleeps."""

ADDRESSEES = {1: ("launcher", "worker 0", "all"), 2: ("launcher", "agent", "worker 0", "worker 1", "all")}
MOMENTS = 12
"""The undisturbed run's time is cut into so many parts; a signal comes at the middle of one."""

STEPS = ("algo.max_steps=40", "launch.mode=auto", "launch.grace_seconds=30")


@dataclass(frozen=True)
class Stop:
    """One cell: a signal."""

    processes: int
    number: signal.Signals
    addressee: str
    moment: int
    then: signal.Signals | None = None
    """The signal that follows."""

    @property
    def group(self) -> str:
        """For the table."""
        names = self.number.name if self.then is None else f"{self.number.name}, then {self.then.name},"
        return f"{names} to {self.addressee}, {self.processes} process{'es' if self.processes > 1 else ''}"

    @property
    def name(self) -> str:
        """When it comes."""
        return f"at {(self.moment + 0.5) / MOMENTS:.0%} of the run"


class Stops:
    """The cells of signals.

    Args:
        python: what starts the processes.
        folder: to work in.
    """

    def __init__(self, python: Path, folder: Path) -> None:
        self._python, self._folder = python, folder
        self._references: dict[int, tuple[Reference, float]] = {}

    def cells(self, step: int) -> Iterator[Stop]:
        """Every `step`-th cell."""
        number = 0
        for processes, addressees in ADDRESSEES.items():
            for _ in range(2):  # the first one waits for what is started once
                whole = self._new("whole")
                started = time.monotonic()
                ended = self._ended(self._start(processes, whole), whole)
                seconds = time.monotonic() - started
            if ended.code != 0:
                raise SystemExit(f"the undisturbed run failed: {ended.err}")
            self._references[processes] = (Reference.of(whole / "runs" / "latest"), seconds)
            for sent, addressee, then in _sent(addressees):
                for moment in range(MOMENTS):
                    number += 1
                    if number % step == 0:
                        yield Stop(processes, sent, addressee, moment, then)

    def run(self, cell: Stop) -> Verdict:
        """Run one cell."""
        folder = self._new("cell")
        reference, seconds = self._references[cell.processes]
        process = self._start(cell.processes, folder)
        time.sleep(seconds * (cell.moment + 0.5) / MOMENTS)
        while not (addressed := _addressed(cell.addressee, process.pid, _run_folder(folder))) and process.poll() is None:
            time.sleep(0.002)  # whom it is for does not live yet
        disturbed = bool(addressed) and process.poll() is None
        _send(cell.number, addressed)
        if cell.then is not None:
            time.sleep(PAUSE_SECONDS if cell.number == signal.SIGSTOP else GAP_SECONDS)
            _send(cell.then, addressed)
        ended = self._ended(process, folder)
        run = _run_folder(folder)
        if run is not None and (left := _left_behind(run)):
            _send(signal.SIGKILL, left)
            return Verdict(False, f"{len(left)} process(es) left behind", shown=ended.err[-800:])

        def go_on(run: Path | None) -> Ended:
            begun = run is not None and any((run / "checkpoints").glob("step-*"))
            return self._ended(self._start(cell.processes, folder, *([f"resume={run}"] if begun else [])), folder)

        return replace(judge(ended, run, reference, go_on, _may_end(cell)), disturbed=disturbed)

    def _start(self, processes: int, folder: Path, *more: str) -> subprocess.Popen[str]:
        words = [
            "train",
            "algo=lora_sft",
            *OPTIONS,
            "algo.lora_dropout=0.1",
            *STEPS,
            f"launch.nproc_per_node={processes}",
            *more,
        ]
        words.remove("launch=inline")
        env = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "HUB_FAULTS")}
        with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
            command = [str(self._python), "-m", "hub", *words]
            return subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=err, text=True, start_new_session=True)

    def _ended(self, process: subprocess.Popen[str], folder: Path) -> Ended:
        code: int | None = None
        try:
            code = process.wait(LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        out, err = ((folder / name).read_text(encoding="utf-8", errors="replace") for name in ("out", "err"))
        return Ended(code, out, err)

    def _new(self, name: str) -> Path:
        path = self._folder / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path


def _sent(addressees: Sequence[str]) -> Iterator[tuple[signal.Signals, str, signal.Signals | None]]:
    """What is sent to whom, and what then."""
    for number in SIGNALS:
        yield from ((number, addressee, None) for addressee in addressees)
    yield from ((signal.SIGSTOP, addressee, signal.SIGCONT) for addressee in addressees)
    for number, then in SECOND:
        yield from ((number, addressee, then) for addressee in ("launcher", "all"))


def _send(number: signal.Signals, processes: Sequence[int]) -> None:
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _may_end(cell: Stop) -> list[int]:
    """The exit codes beside 0 that a run may have. One that was only paused: none."""
    if cell.number == signal.SIGSTOP:
        return []
    sent = [cell.number, *([cell.then] if cell.then else [])]
    codes = [code for number in sent for code in (-number, 128 + number)]
    if cell.addressee != "launcher" or not set(sent) <= HANDLED:
        codes.append(1)
    if not set(sent) <= HANDLED:
        codes.append(128 + signal.SIGTERM)  # of a worker whose parent is gone
    return codes


def _run_folder(folder: Path) -> Path | None:
    runs = sorted(path for path in (folder / "runs").glob("*") if (path / "run.yaml").is_file() and not path.is_symlink())
    return runs[-1] if runs else None


def _processes(run: Path | None) -> list[tuple[int, str]]:
    """Workers and agents of a run that live."""
    found = []
    for pid in os.listdir("/proc") if run is not None else ():
        with suppress(OSError):
            words = Path("/proc", pid, "cmdline").read_bytes().decode().split("\0") if pid.isdigit() else []
            if str(run) in words:
                found.append((int(pid), next((word for word in words if word.startswith("hub.launch.")), "")))
    return sorted(found)


def _addressed(addressee: str, launcher: int, run: Path | None) -> list[int]:
    processes = _processes(run)
    workers = [pid for pid, module in processes if module == "hub.launch.worker"]
    if addressee == "launcher":
        return [launcher]
    if addressee == "all":
        return [launcher, *(pid for pid, _ in processes)]
    if addressee == "agent":
        return [pid for pid, module in processes if module == "hub.launch.elastic"]
    index = int(addressee.removeprefix("worker "))
    return workers[index : index + 1]


def _left_behind(run: Path, seconds: float = 40.0) -> list[int]:
    """Processes of a run that still live so long after its launcher."""
    end = time.monotonic() + seconds
    while (left := [pid for pid, _ in _processes(run)]) and time.monotonic() < end:
        time.sleep(0.05)
    return left
