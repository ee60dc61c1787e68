"""The runs of a study in processes of their own, spread over the GPUs."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from hub.system.gpus import num_visible_gpus
from hub.system.leash import leash
from hub.tasks.continual.job import Job

Process = subprocess.Popen[bytes]

FAILED = "failed: "
"""How a note begins on a run that failed."""


def run_all(jobs: Sequence[Job], num_processes: int, time_limit: float | None) -> list[str]:
    """Do what is left of jobs.

    Args:
        jobs: all of them, in the order in which they begin.
        num_processes: at the same time.
        time_limit: seconds after which none begins.

    Returns:
        What failed, and what is left.
    """
    begun = time.monotonic()
    left = [job for job in jobs if not job.is_done]
    notes: list[str] = []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(number) for number in range(num_visible_gpus())]
    processes_per_gpu = -(-min(num_processes, len(left)) // len(gpus)) if gpus and left else 1
    working: dict[int, tuple[Job, Process]] = {}
    with leash() as stdin:  # the runs end with this process: the same command begins them again
        while True:
            late = time_limit is not None and time.monotonic() - begun > time_limit
            for slot in range(num_processes):
                if slot in working:
                    job, child = working[slot]
                    if child.poll() is None:
                        continue
                    del working[slot]
                    notes += _ended(job, child, time.monotonic() - begun)
                if left and not late:
                    job = left.pop(0)
                    working[slot] = (
                        job,
                        _start(job, gpus[slot % len(gpus)] if gpus else None, num_processes, processes_per_gpu, stdin),
                    )
            if not working:
                break
            time.sleep(0.1)
    if left:
        runs = "1 run is" if len(left) == 1 else f"{len(left)} runs are"
        notes.append(f"the time limit was reached: {runs} left. Type the same command again")
    return notes


def _ended(job: Job, child: Process, seconds: float) -> list[str]:
    """Say how far a job is. Returns why it failed, if it did."""
    folder = Path(job.folder)
    done = "done" if job.is_done else f"{len(job.state.get('measured', []))} tasks done"
    print(f"{seconds:6.0f} s  {folder.name}: {done}", file=sys.stderr, flush=True)
    if not child.returncode:
        return []
    log = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").strip()
    return [f"{FAILED}{folder.name}: {log.splitlines()[-1] if log else child.returncode}"]


def _start(job: Job, gpu: str | None, num_processes: int, processes_per_gpu: int, stdin: int) -> Process:
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // num_processes))
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    asked = asdict(job) | {"processes_per_gpu": processes_per_gpu}
    command = [sys.executable, "-m", "hub.tasks.continual.job", json.dumps(asked)]
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdin=stdin, stdout=log, stderr=subprocess.STDOUT)
