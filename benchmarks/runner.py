"""Runs one who takes part on one work, in a process of its own, and finds out how fast it was.

The process is watched through what it writes down after each step. It is ended as soon as the last step is there: what it
would do then, saving the model above all, is not measured.
"""

import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from benchmarks.peers import Peer, Step, Task
from hub.system.cache import cache_dir
from hub.system.gpus import num_visible_gpus

OFFLINE = {
    "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1", "UNSLOTH_DISABLE_STATISTICS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1",
}  # fmt: skip
"""Nothing is fetched and nobody is told."""

LEAST_STEPS = 4
"""So many must be through, so that the later half is two or more, before what ran out of time is worth a figure."""

SHOWN_LINES = 12
"""Of what a process said last before it failed."""

POLL_SECONDS = 0.1
REPOSITORY = Path(__file__).parents[1]


@dataclass(kw_only=True)
class Row:
    """A row of the table."""

    work: str
    way: str
    title: str
    tokens_per_second: float | None = None
    """The median over the later half of the steps. None: it failed."""

    peak_gib: float | None = None
    """Allocated by torch while training. None without a GPU."""

    first_step_seconds: float | None = None
    """From the start of the process to the end of its first step: imports, loading, measuring, compiling."""

    steps: list[Step] = field(default_factory=list)
    longest: int | None = None
    """Tokens of the longest row that got through, where that was looked for."""

    failure: str = ""
    """Why there is no figure, or why it is one of fewer steps."""

    out_of_memory: bool = False
    about: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    """All in all."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Start:
    """The interpreter and the environment in which one takes part."""

    python: str
    variables: dict[str, str]

    @classmethod
    def of(cls, name: str) -> "Start":
        """As `HUB_PEER_<NAME>` says: `VARIABLE=VALUE ... INTERPRETER`, each part optional."""
        python, variables = sys.executable, dict(os.environ)
        for word in shlex.split(os.environ.get(f"HUB_PEER_{name.upper()}", "")):
            key, is_variable, value = word.partition("=")
            if is_variable:
                variables[key] = value
            else:
                python = shutil.which(word) or word
        paths = [str(REPOSITORY), variables.get("PYTHONPATH", "")]
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        own = {"UNSLOTH_COMPILE_LOCATION": str(cache_dir() / "benchmarks" / "unsloth")}
        return cls(python, OFFLINE | own | variables)

    def has(self, module: str) -> bool:
        """Whether a module is installed there. It is not imported."""
        look = f"import importlib.util as u, sys; sys.exit(u.find_spec({module!r}) is None)"
        return subprocess.run([self.python, "-c", look], env=self.variables, capture_output=True, check=False).returncode == 0


def run(peer: Peer, work: str, task: Task, folder: Path, limit: float, variables: dict[str, str] | None = None) -> Row:
    """Run it until its last step, its end, or the time is up.

    Args:
        peer: who.
        work: the name of the work, for the row.
        task: what is to be done.
        folder: an empty folder for all that it writes.
        limit: seconds.
        variables: of its environment, besides.
    """
    row = Row(work=work, way=task.way, title=peer.title)
    task.write(folder)
    start = Start.of(peer.environment)
    environment = start.variables | (variables or {})
    if task.gpus == 1 and num_visible_gpus() > 1:
        visible = environment.get("CUDA_VISIBLE_DEVICES")
        environment["CUDA_VISIBLE_DEVICES"] = "0" if visible is None else visible.split(",")[0]
    log = folder / "log.txt"
    begun, clock = time.time(), time.monotonic()
    with log.open("w", encoding="utf-8") as stream:
        child = psutil.Popen(
            [start.python, *peer.command(task, folder)], env=environment, cwd=folder, stdin=subprocess.DEVNULL,
            stdout=stream, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            while child.poll() is None and len(peer.steps(folder)) < task.steps and time.monotonic() - clock < limit:
                time.sleep(POLL_SECONDS)
            ended = child.poll()
        finally:
            _end(child)
    row.seconds = round(time.monotonic() - clock, 1)
    row.steps, row.about = peer.steps(folder), peer.about(folder)
    if row.steps:
        row.first_step_seconds = round(row.steps[0].time - begun, 1)
    if len(row.steps) < task.steps:
        said = log.read_text(encoding="utf-8", errors="replace")
        row.out_of_memory = ended is not None and "out of memory" in said.lower()
        row.failure = f"ended with exit code {ended}" if ended is not None else f"stopped after {limit:.0f} s"
        row.failure = "out of memory" if row.out_of_memory else row.failure
        row.failure += f" ({len(row.steps)} of {task.steps} steps)"
        print("\n".join(f"    {line}" for line in said.splitlines()[-SHOWN_LINES:]), flush=True)
    cut_short = ended is None and len(row.steps) >= LEAST_STEPS
    if len(row.steps) >= task.steps or cut_short:
        row.tokens_per_second = round(speed(row.steps), 1)
        peaks = [step.peak_bytes for step in row.steps if step.peak_bytes is not None]
        row.peak_gib = round(max(peaks) / 2**30, 2) if peaks else None
    return row


def speed(steps: list[Step]) -> float:
    """Tokens per second: the median over the later half of the steps, each from the end of the one before to its own."""
    pairs = list(pairwise(steps))
    later = pairs[len(steps) // 2 - 1 :] if len(steps) > 1 else []
    return statistics.median(step.tokens / (step.time - before.time) for before, step in later) if later else 0.0


def _end(child: psutil.Popen) -> None:
    """End a process with all that it started; another may need its GPU."""
    try:
        family = [*child.children(recursive=True), child]
    except psutil.NoSuchProcess:
        family = [child]
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=60)
