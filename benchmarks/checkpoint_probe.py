"""A plugin for the runs of `benchmarks.checkpoints`: records when a step is logged, and how long a save stops the loop."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

from hub import Run, RunConfig, hookimpl

FILE = "times.jsonl"


@hookimpl
def hub_run_start(cfg: RunConfig, run: Run) -> None:
    from hub.train import loop
    from hub.train.checkpoints import writer

    if os.environ["HUB_BENCHMARK_SAVES"] == "waiting":
        writer.free_host_memory = lambda: 0
    save = loop._Fit._checkpoint

    def timed(self, *args, **options) -> Path | None:
        begun = time.perf_counter()
        try:
            return save(self, *args, **options)
        finally:
            _write(run, {"saved": self.done, "seconds": time.perf_counter() - begun})

    loop._Fit._checkpoint = timed


@hookimpl
def hub_log(run: Run, step: int, metrics: Mapping[str, float]) -> None:
    _write(run, {"step": step, "time": time.perf_counter()})


def _write(run: Run, line: dict[str, float]) -> None:
    with (run.path / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
