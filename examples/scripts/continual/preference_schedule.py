"""The schedule of `preference_learning.py`: jobs in workers that stay, spread over the visible GPUs, results line by line."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from continual.preference_jobs import PairJob, PairStudy
from hub.system.gpus import num_visible_gpus

SCRIPT = Path(__file__).parents[1] / "preference_learning.py"


class Worker:
    """A process that does one job after the other: torch is imported once."""

    def __init__(self, number: int, num_workers: int, asked: PairStudy) -> None:
        self._number, self._folder = number, Path(asked.folder)
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else [str(each) for each in range(num_visible_gpus())]
        gpu = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}
        threads = str(max(1, (os.cpu_count() or 1) // num_workers))
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": threads} | gpu
        with (self._folder / f"worker-{number}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(SCRIPT), "--work"], stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
                env=environment, text=True,
            )  # fmt: skip
        self.job: PairJob | None = None
        self._write(asdict(asked))

    @property
    def _file(self) -> Path:
        return self._folder / f"worker-{self._number}.json"

    def _write(self, values: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(values) + "\n")
        self._process.stdin.flush()

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def begin(self, job: PairJob) -> None:
        self._file.unlink(missing_ok=True)
        self.job = job
        self._write({"job": asdict(job), "file": str(self._file)})

    def result(self) -> dict[str, Any] | None:
        """The line of its job. None: it is still at it."""
        assert self.job is not None
        found: dict[str, Any]
        if self._file.is_file():
            found = json.loads(self._file.read_text(encoding="utf-8"))
        elif self.is_alive:
            return None
        else:
            found = {"job": self.job.name, "failure": f"its process ended with {self._process.returncode}"}
        self.job = None
        return found

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def lines_of(file: Path) -> list[dict[str, Any]]:
    """The results that a file has so far. A line that was cut off is left out."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def run_all(asked: PairStudy, jobs: Sequence[PairJob], file: Path, num_workers: int, minutes: float | None) -> list[str]:
    """Do the jobs that a file has no result of, the first ones first, and add each result to it.

    Args:
        asked: what all jobs share.
        jobs: the jobs. One that learns from pairs waits for its start.
        file: JSONL file of the results.
        num_workers: number of processes.
        minutes: no job is begun after so long. None: all are.

    Returns:
        A line for each failure.
    """
    done = {line["job"] for line in lines_of(file)}
    done -= {job.name for job in jobs if job.algo is None and not asked.start(job.seed).is_dir()}
    left = [job for job in jobs if job.name not in done]
    begun, problems = time.monotonic(), []
    workers: list[Worker] = []

    def ready(job: PairJob) -> bool:
        return job.algo is None or asked.start(job.seed).is_dir()

    def next_job() -> PairJob | None:
        late = minutes is not None and time.monotonic() - begun > 60 * minutes
        return None if late else next((job for job in left if ready(job)), None)

    try:
        while True:
            for place, worker in enumerate(workers):
                if worker.job is not None and (found := worker.result()) is not None:
                    if "failure" in found:
                        problems.append(f"{found['job']}: {found['failure']}")
                    else:
                        with file.open("a", encoding="utf-8") as stream:
                            stream.write(json.dumps(found) + "\n")
                    words = found.get("failure") or f"{found['seconds']:.0f} s"
                    print(f"{time.monotonic() - begun:6.0f} s  {found['job']}  {words}", flush=True)
                    if not worker.is_alive:
                        workers[place] = Worker(place, num_workers, asked)
            while (job := next_job()) is not None:
                idle = next((worker for worker in workers if worker.job is None), None)
                if idle is None and len(workers) < num_workers:
                    workers.append(idle := Worker(len(workers), num_workers, asked))
                if idle is None:
                    break
                left.remove(job)
                idle.begin(job)
            if all(worker.job is None for worker in workers):
                return problems
            time.sleep(0.1)
    finally:
        for worker in workers:
            worker.end()
