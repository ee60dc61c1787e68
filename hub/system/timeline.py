"""Where the seconds before the first step go: a clock of stages, from the start of the process that the user started.

The clock is monotonic and one for all processes of a machine, so a worker goes on with its parent's. A stage that begins within
another one interrupts it: each second belongs to one stage. What `torch.compile` takes is a stage of its own wherever it
happens. A stage that lasts is announced in a line, and then shows that it goes on.
"""

import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from hub.system.processes import here
from hub.system.saying import lines_said, moving_terminal

STAGES = {
    "start": "reading the command and its options",
    "checks": "checking options, files and the first rows of data",
    "libraries": "importing torch and transformers",
    "plan": "following a step of the model without its numbers",
    "process": "starting the worker",
    "imports": "importing torch, transformers and the algorithm",
    "device": "preparing the device and the process group",
    "files": "finding the base weights and checking their names and shapes",
    "data": "reading and tokenizing the data",
    "weights": "loading the weights",
    "model": "preparing what trains",
    "rehearsal": "trying to save the model",
    "causality": "checking that no later token changes an earlier one",
    "isolation": "measuring whether packed samples see each other",
    "equality": "comparing the hub's kernels with the model's own",
    "memory": "measuring the memory of a pass",
    "compiling": "compiling the layers",
    "evaluation": "measuring the model before training",
    "step": "the first step",
}
"""Stage -> what is being done, for the user who waits."""

SECONDS_UNTIL_SAID = 0.7
"""A stage that is over by then says nothing."""

SECONDS_UNTIL_REPEATED = 30.0
"""Where there is no spinner, a stage that still runs is reported after this time, then after twice of it, and so on."""

SPINNER, SECONDS_BETWEEN_FRAMES = "|/-\\", 0.2

WITH_A_BAR = ("evaluation", "step")
"""Stages during which the progress bar is on the terminal. It moves by itself, so there is no spinner."""

VARIABLE = "HUB_TIMELINE"
"""Environment variable by which a process hands its clock to a child."""

_OLDEST = 60.0
"""Age of a process in seconds up to which its start counts as that of the command: a shell may have become it by `exec`."""


class Timeline:
    """The clock of one run in one process.

    Args:
        started: when the first stage began, in seconds of `time.monotonic`. None: now.
        stage: the first stage.
        seconds: what earlier stages took, of a parent process.
        say: prints a line on what is waited for. None: nothing is printed.
    """

    def __init__(
        self,
        started: float | None = None,
        stage: str = "start",
        seconds: dict[str, float] | None = None,
        say: Callable[[str], object] | None = None,
    ) -> None:
        self.say = say
        self.is_over = False
        self._seconds = dict(seconds or {})
        self._since = time.monotonic() if started is None else started
        self._compiled = _seconds_compiling()
        self._stack = [stage]
        self._said: set[str] = set()
        self._thread = threading.get_ident()
        self._timer: threading.Timer | None = None

    def begin(self, stage: str) -> None:
        """End the stage that is going on, and begin this one. Within `stage` it changes nothing."""
        if self._counts and len(self._stack) == 1:
            self._charge()
            self._stack = [stage]
            self._watch()

    @contextmanager
    def stage(self, stage: str) -> Iterator[None]:
        """Count what runs in this context as a stage. The stage around it goes on afterwards. Other threads are not counted."""
        if not self._counts:
            yield
            return
        self._charge()
        self._stack.append(stage)
        self._watch()
        try:
            yield
        finally:
            if not self.is_over:
                self._charge()
                self._stack.pop()
                self._watch()

    def end(self) -> dict[str, float]:
        """Stop the clock. Returns the seconds of each stage, in the order of `STAGES`."""
        if not self.is_over:
            self._charge()
            self.is_over = True
            self._watch()
        return self.seconds

    @property
    def seconds(self) -> dict[str, float]:
        """The seconds of each stage that has ended, or was interrupted, so far."""
        return {stage: self._seconds[stage] for stage in STAGES if stage in self._seconds}

    def handed_over(self) -> dict[str, str]:
        """Stop the clock. Returns environment variables by which a child process goes on with it: its start is a stage."""
        self.end()
        return {VARIABLE: json.dumps({"here": here(), "since": self._since, "seconds": self._seconds})}

    @property
    def _counts(self) -> bool:
        return not self.is_over and threading.get_ident() == self._thread

    def _charge(self) -> None:
        """Give the time since the last call to the stage that is going on, and what of it compiling took to that."""
        now, compiled = time.monotonic(), _seconds_compiling()
        passed = max(0.0, now - self._since)
        compiling = min(passed, max(0.0, compiled - self._compiled))
        self._since, self._compiled = now, compiled
        if compiling:
            self._seconds["compiling"] = self._seconds.get("compiling", 0.0) + compiling
        top = self._stack[-1]
        self._seconds[top] = self._seconds.get(top, 0.0) + passed - compiling

    def _watch(self) -> None:
        """Say what is waited for, if the stage that has begun lasts."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        top = self._stack[-1]
        if self.say is None or self.is_over or top in self._said or top == "start":
            return
        self._timer = threading.Timer(SECONDS_UNTIL_SAID, self._announce, [top])
        self._timer.daemon = True
        self._timer.start()

    def _announce(self, stage: str) -> None:
        say = self.say
        if say is not None and not self.is_over and self._stack[-1] == stage and stage not in self._said:
            self._said.add(stage)
            say(f"{STAGES.get(stage, stage)} ...")
            self._wait_with(stage, say)

    def _wait_with(self, stage: str, say: Callable[[str], object]) -> None:
        """Show that a stage goes on, in the thread of its timer: a spinner, or now and then a line.

        It ends with the stage, and when anything else is said. Only what is in `STAGES` is known to end.
        """
        begun, repeat, terminal = time.monotonic(), SECONDS_UNTIL_REPEATED, moving_terminal()
        turning, before = None if stage in WITH_A_BAR else terminal, lines_said()
        for frame in itertools.cycle(SPINNER):
            time.sleep(SECONDS_BETWEEN_FRAMES)
            if self.is_over or self._stack[-1] != stage or stage not in STAGES or lines_said() != before:
                return
            seconds = SECONDS_UNTIL_SAID + time.monotonic() - begun
            if turning is not None:
                _turn(turning, f"{frame} {seconds:.0f} s")
            elif terminal is None and seconds >= repeat:
                repeat *= 2
                say(f"{STAGES[stage]} ... {seconds:.0f} s so far")
                before = lines_said()

    def close(self) -> None:
        """Stop the clock of a run that has ended, and wait for nothing."""
        self.is_over = True
        self._watch()


class _Current:
    """The clock of this process. Runs in one process come one after the other."""

    timeline: Timeline | None = None
    is_taken = False
    """Whether a run has it already."""


_current = _Current()


def start(started: float | None = None) -> None:
    """Start the clock of the next run of this process: when the user asks for it, before anything slow.

    Args:
        started: see `Timeline`.
    """
    close()
    _current.timeline, _current.is_taken = Timeline(started), False


def of_run(say: Callable[[str], object] | None) -> Timeline:
    """The clock of a run that begins: the one that was started for it, else a new one.

    Args:
        say: see `Timeline`.
    """
    if _current.timeline is None or _current.is_taken or _current.timeline.is_over:
        start()
    assert _current.timeline is not None
    _current.is_taken, _current.timeline.say = True, say
    return _current.timeline


def take_over(say: Callable[[str], object] | None) -> Timeline:
    """The clock that the parent process has handed over, in a worker. One that is not this machine's is not taken.

    Args:
        say: see `Timeline`.
    """
    text = os.environ.pop(VARIABLE, "")
    close()
    timeline = Timeline(process_started(), "process", say=say)
    with suppress(ValueError, TypeError, KeyError, AttributeError):
        given = json.loads(text)
        seconds = {str(stage): float(value) for stage, value in given["seconds"].items() if stage in STAGES}
        since = float(given["since"])
        if given["here"] == here() and since <= time.monotonic():
            timeline = Timeline(since, "process", seconds, say)
    _current.timeline, _current.is_taken = timeline, True
    return timeline


def handed_over() -> dict[str, str]:
    """Environment variables by which a worker goes on with the clock of this process, which stops. A new one begins it now."""
    if _current.timeline is None or _current.timeline.is_over:
        start()
    assert _current.timeline is not None
    return _current.timeline.handed_over()


def close() -> None:
    """Stop the clock of this process, if there is one."""
    if _current.timeline is not None:
        _current.timeline.close()
    _current.timeline = None


def begin(stage: str) -> None:
    """Begin a stage of the run of this process: see `Timeline.begin`. Without a run nothing happens."""
    if _current.timeline is not None:
        _current.timeline.begin(stage)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Count what runs in this context as a stage of the run of this process: see `Timeline.stage`. It decorates functions."""
    if _current.timeline is None:
        yield
        return
    with _current.timeline.stage(name):
        yield


def end() -> dict[str, float] | None:
    """Stop the clock of the run of this process: the first step is done. Returns its seconds. None: it has stopped."""
    timeline = _current.timeline
    return None if timeline is None or timeline.is_over else timeline.end()


def process_started() -> float:
    """When this process was started, in seconds of `time.monotonic`. Now, where the system does not say."""
    now = time.monotonic()
    with suppress(OSError, ValueError, IndexError, AttributeError):
        ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        if 0 <= age <= _OLDEST:
            return now - age
    return now


def _turn(terminal: TextIO, text: str) -> None:
    """Write a text where the next line will begin: that overwrites it, whoever prints it."""
    with suppress(OSError, ValueError):
        terminal.write(f"\r{text}\r")
        terminal.flush()


def lines(seconds: dict[str, float]) -> list[str]:
    """A table of the stages, for the user: a line on all of them, and one for each.

    Args:
        seconds: of each stage.
    """
    total = sum(seconds.values())
    rows = [f"the first step ended {total:.1f} s after the start:"]
    for stage, taken in seconds.items():
        rows.append(f"  {taken:7.2f} s  {taken / max(total, 1e-9):4.0%}  {stage:<11} {STAGES.get(stage, '')}".rstrip())
    return rows


def _seconds_compiling() -> float:
    """Seconds that torch has spent with compiling in this process. 0 as long as its compiler is not imported."""
    utils = sys.modules.get("torch._dynamo.utils")
    try:
        return float(utils.calculate_time_spent()["total_wall_time"]) if utils is not None else 0.0
    except (AttributeError, KeyError, TypeError, RuntimeError):  # while it is being imported
        return 0.0
