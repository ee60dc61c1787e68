"""The schedule of all jobs, which run in parallel on the visible GPUs."""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from continual.figures import in_words
from continual.methods import Method
from continual.study import Study
from hub.system.gpus import num_visible_gpus

SCRIPT = Path(__file__).parents[1] / "continual_learning.py"


@dataclass(frozen=True)
class Job:
    """One job: a run, or a part of a search."""

    method: Method
    rate: float
    seed: int | None
    """None: a search."""

    out: Path

    @property
    def file(self) -> Path:
        if self.seed is None:
            return self.out / "search" / f"{safe(self.method.searched_as)}-{self.rate:g}.json"
        return self.out / "runs" / f"{safe(self.method.name)}-seed{self.seed}.json"


def safe(name: str) -> str:
    return name.replace(":", "_").replace("=", "").replace(",", "_")


class Schedule:
    """The order of the jobs: the methods one after another, each with its search first, then its seeds."""

    def __init__(self, methods: list[Method], seeds: list[int], out: Path) -> None:
        self.methods, self.seeds, self.out = methods, seeds, out
        self.begun: set[Path] = set()
        self.failed: set[Path] = set()

    def rate(self, method: Method) -> float | None:
        """The learning rate of the lowest held-out loss; None while a search is not over."""
        if len(method.rates) == 1:
            return method.rates[0]
        losses: dict[float, float] = {}
        for rate in method.rates:
            file = Job(method, rate, None, self.out).file
            if file.is_file():
                loss = json.loads(file.read_text(encoding="utf-8"))["loss"]
                losses[rate] = math.inf if loss is None else loss
            elif file not in self.failed:
                return None
        return min(losses, key=lambda rate: losses[rate]) if losses else None

    def open(self) -> Iterator[Job]:
        """Runs that can be begun now."""
        for method in self.methods:
            rate = self.rate(method)
            if rate is None:
                jobs = [Job(method, rate, None, self.out) for rate in method.rates]
            else:
                jobs = [Job(method, rate, seed, self.out) for seed in self.seeds[: 1 if method.kind == "untrained" else None]]
            yield from (job for job in jobs if job.file not in self.begun and not job.file.is_file())


def run_all(study: Study, schedule: Schedule, num_jobs: int, time_limit: float | None) -> list[str]:
    """Run the jobs in `num_jobs` processes, spread over the GPUs. Return the failures."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(number) for number in range(num_visible_gpus())]
    threads = str(max(1, (os.cpu_count() or 1) // num_jobs))
    begun = time.monotonic()
    working: dict[int, tuple[Job, subprocess.Popen[bytes]]] = {}
    problems: list[str] = []
    while True:
        for slot in range(num_jobs):
            if slot in working:
                job, child = working[slot]
                if child.poll() is None:
                    continue
                del working[slot]
                if child.returncode:
                    schedule.failed.add(job.file)
                    log = job.file.with_suffix(".log").read_text(encoding="utf-8", errors="replace").strip()
                    problems.append(f"{job.file.stem}: {log.splitlines()[-1] if log else child.returncode}")
                failed = bool(child.returncode)
                outcome = "FAILED" if failed else f"done: {in_words(json.loads(job.file.read_text(encoding='utf-8')))}"
                print(f"{time.monotonic() - begun:6.0f} s  {job.file.stem}  {outcome}", flush=True)
            late = time_limit is not None and time.monotonic() - begun > time_limit
            job_next = None if late else next(schedule.open(), None)
            if job_next is not None:
                schedule.begun.add(job_next.file)
                gpu = {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {}
                working[slot] = (job_next, start(study, job_next, {**gpu, "OMP_NUM_THREADS": threads}))
        if not working:
            return problems
        time.sleep(0.1)


def start(study: Study, job: Job, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    job.file.parent.mkdir(parents=True, exist_ok=True)
    asked = {"study": vars(study), "method": job.method.name, "rate": job.rate, "seed": job.seed, "file": str(job.file)}
    command = [sys.executable, str(SCRIPT), "--job", json.dumps(asked)]
    with job.file.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(
            command, env={**os.environ, "TOKENIZERS_PARALLELISM": "false", **environment}, stdout=log, stderr=subprocess.STDOUT
        )
