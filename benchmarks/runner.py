"""Runs one contender on one workload in a separate process, and measures its speed.

The process writes a line after each step, which is read here. It is killed after its last step: what would follow, such as
saving the model, is not measured.
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
"""Nothing is downloaded, and no usage is reported."""

LEAST_STEPS = 4
"""Minimum number of completed steps for a figure if the time limit is reached, so that the later half has at least two."""

SHOWN_LINES = 12
"""Number of last lines that are printed of a process that failed."""

POLL_SECONDS = 0.1
REPOSITORY = Path(__file__).parents[1]


@dataclass(kw_only=True)
class Row:
    """A row of the table."""

    workload: str
    contender: str
    title: str
    tokens_per_second: float | None = None
    """The median over the later half of the steps. None: it failed."""

    peak_gib: float | None = None
    """Allocated by torch while training. None without a GPU."""

    first_step_seconds: float | None = None
    """From the start of the process to the end of its first step: imports, loading, measuring, compiling."""

    steps: list[Step] = field(default_factory=list)
    longest: int | None = None
    """Only with a search: tokens of the longest row that fit."""

    failure: str = ""
    """Why there is no figure, or why it is from fewer steps."""

    out_of_memory: bool = False
    about: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    """Duration of the whole process."""

    def as_json(self) -> dict[str, Any]:
        """Return the values for the file of `--json`, under its keys."""
        values = asdict(self)
        return {"work": values.pop("workload"), "way": values.pop("contender"), **values}


@dataclass(frozen=True)
class Start:
    """The interpreter and the environment of a contender."""

    python: str
    variables: dict[str, str]

    @classmethod
    def of(cls, name: str) -> "Start":
        """Read `HUB_PEER_<NAME>`: `VARIABLE=VALUE ... INTERPRETER`, each part optional."""
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
        """Return whether a module is installed there, without importing it."""
        look = f"import importlib.util as u, sys; sys.exit(u.find_spec({module!r}) is None)"
        return subprocess.run([self.python, "-c", look], env=self.variables, capture_output=True, check=False).returncode == 0


def run(peer: Peer, workload: str, task: Task, folder: Path, limit: float, variables: dict[str, str] | None = None) -> Row:
    """Run a contender until its last step, until it exits, or until the time limit.

    Args:
        peer: the contender.
        workload: name of the workload, for the row.
        task: the description of the workload.
        folder: an empty folder for its output.
        limit: time limit in seconds.
        variables: additional environment variables.
    """
    row = Row(workload=workload, contender=task.contender, title=peer.title)
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
        output = log.read_text(encoding="utf-8", errors="replace")
        row.out_of_memory = ended is not None and "out of memory" in output.lower()
        row.failure = f"ended with exit code {ended}" if ended is not None else f"stopped after {limit:.0f} s"
        row.failure = "out of memory" if row.out_of_memory else row.failure
        row.failure += f" ({len(row.steps)} of {task.steps} steps)"
        print("\n".join(f"    {line}" for line in output.splitlines()[-SHOWN_LINES:]), flush=True)
    cut_short = ended is None and len(row.steps) >= LEAST_STEPS
    if len(row.steps) >= task.steps or cut_short:
        row.tokens_per_second = round(speed(row.steps), 1)
        peaks = [step.peak_bytes for step in row.steps if step.peak_bytes is not None]
        row.peak_gib = round(max(peaks) / 2**30, 2) if peaks else None
    return row


def speed(steps: list[Step]) -> float:
    """Return tokens per second: the median over the later half of the steps. A step starts when the previous one ends."""
    pairs = list(pairwise(steps))
    later = pairs[len(steps) // 2 - 1 :] if len(steps) > 1 else []
    return statistics.median(step.tokens / (step.time - before.time) for before, step in later) if later else 0.0


def _end(child: psutil.Popen) -> None:
    """Kill a process and its children, so that the GPU is free for the next."""
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
