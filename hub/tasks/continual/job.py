"""One run of a study: a method goes through all tasks with one seed, and is measured after each.

Its folder has state.json, written after each task: a run that was stopped continues with the next one.
"""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from hub.compose import runfile
from hub.config.schema import ModelConfig, RunConfig
from hub.errors import HubError
from hub.models.finished import finished_model, finished_run
from hub.models.merging import merge
from hub.models.merging.quantized import Kind
from hub.models.weights import local_weights
from hub.parallel.session import limit_memory
from hub.system.files import write_json
from hub.system.leash import end_with_parent
from hub.system.memory import GIB
from hub.tasks.continual.study import REPLAY, Method, Study, with_replay, write_rows

BEFORE = "before"
STATE = "state.json"
MERGED = "exports/merged"
"""Folder of a merged model within a run folder, the one that `hub export to=merged` would write."""


@dataclass(frozen=True)
class Job:
    """One run, or the measurement of the model before any training."""

    study: Study
    method: str
    seed: int
    folder: str
    processes_per_gpu: int = 1
    """Most processes that use the same GPU at the same time."""

    @property
    def state(self) -> dict[str, Any]:
        """What is done: `tasks` in their order, and a measurement after each. Empty: nothing yet."""
        file = Path(self.folder) / STATE
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return found

    @property
    def is_done(self) -> bool:
        return bool(self.state.get("done"))


def work(job: Job) -> None:
    """Do what is left of a job."""
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    if (bound := _memory_limit(job.processes_per_gpu)) is not None:
        limit_memory(bound, torch.device("cuda", 0))
    if job.method == BEFORE:
        _write(folder, {"measured": [_measured(job, None)], "done": True})
        return
    method, order = Method(job.method), job.study.order(job.seed)
    state = job.state or {"method": method.name, "seed": job.seed, "tasks": order, "runs": [], "measured": [], "done": False}
    for number, task in enumerate(order):
        if number < len(state["measured"]):
            continue
        begun = time.monotonic()
        before = state["runs"][-1] if state["runs"] else None
        rows = job.study.train_rows(task)
        if method.kind == REPLAY:
            rows = with_replay(job.study, rows, order[:number], job.seed)
        data = write_rows(folder / f"{number + 1}-{task}.jsonl", [{"messages": row["messages"]} for row in rows])
        run = _train(job, method, before, data)
        if number + 1 < len(order):
            _whole_model(run)
        state["measured"].append({**_measured(job, run), "seconds": round(time.monotonic() - begun, 1)})
        state["runs"].append(run)
        state["done"] = number + 1 == len(order)
        _write(folder, state)
        data.unlink()
        if before is not None:
            for place in (Path(before) / "model", Path(before) / MERGED):
                for file in place.glob("*.safetensors"):
                    file.unlink()


def _train(job: Job, method: Method, before: str | None, data: Path) -> str:
    """Train on one task, from the model of the run before. Returns the run folder."""
    run = import_module("hub.api").run  # by its name: this program uses the hub as any caller does, from above
    options = dict(job.study.model)
    path = options.pop("path")
    result = run(
        method.algorithm,
        model=_whole_model(before) if before else path,
        data=str(data),
        mode="inline",
        output_dir=str(Path(job.folder) / "runs"),
        **{"seed": job.seed, **options, **method.options},
    )
    return str(result.run_path)


def _memory_limit(processes: int) -> float | None:
    """Memory in GiB for one of several processes on a GPU. None: it has the GPU alone, or there is none."""
    if processes == 1 or not torch.cuda.is_available():
        return None
    return round(0.97 * torch.cuda.get_device_properties(0).total_memory / processes / GIB, 2)


def _whole_model(run: str) -> str:
    """The folder of the whole model that a run made. An adapter is merged the first time, and the next task gets a new one."""
    cfg = runfile.read(Path(run) / "run.yaml")
    finished = finished_run(run, "runs", cfg)
    if finished.adapter is None:
        return run
    folder = Path(run) / MERGED
    if not folder.is_dir():
        kind: Kind | None = "nf4" if getattr(cfg.algo, "load_in_4bit", False) else None
        kind = "int8" if getattr(cfg.algo, "load_in_8bit", False) else kind
        base = local_weights(finished.base, print)
        folder.parent.mkdir(exist_ok=True)
        merge(base, finished.adapter, folder, None, print, model=finished.base, dequantized=kind)
    return str(folder)


def _measured(job: Job, run: str | None) -> dict[str, Any]:
    from hub.tasks.continual.measure import measure

    if run is None:
        model = ModelConfig(**job.study.model)
        return asdict(measure(job.study, RunConfig(model=model), finished_model(model)))
    cfg = runfile.read(Path(run) / "run.yaml")
    return asdict(measure(job.study, cfg, finished_run(run, "runs", cfg)))


def _write(folder: Path, state: Mapping[str, Any]) -> None:
    write_json(folder / STATE, dict(state))


if __name__ == "__main__":
    end_with_parent()
    asked = json.loads(sys.argv[1])
    try:
        work(Job(Study(**asked.pop("study")), **asked))
    except HubError as error:
        sys.exit(f"\n{error}")
