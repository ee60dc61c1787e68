"""A plugin for the hub's runs in `python -m benchmarks`: logs the end of each step, and can profile two of them.

`HUB_BENCHMARK_PROFILE=5:7` profiles from the end of step 5 to the end of step 7. It writes `trace.json` and `profile.json`
beside the run folder.
"""

import json
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.peers.step_log import StepLog
from hub import DataFormat, Run, RunConfig, hookimpl

PROFILE = "HUB_BENCHMARK_PROFILE"

_open: list[tuple[Any, float, list[int]]] = []
"""The running profiler, its start, and the tokens of the steps since."""


def pair_of(row: dict[str, Any]) -> dict[str, Any]:
    """Convert a row of tokens to the samples of a pair."""
    prompt = row["prompt_ids"]
    answers = {role: row[f"{role}_ids"] for role in ("chosen", "rejected")}
    return {role: {"input_ids": prompt + ids, "labels": [-100] * len(prompt) + ids} for role, ids in answers.items()}


@hookimpl
def hub_data_formats() -> Iterable[DataFormat]:
    fields = ("prompt_ids", "chosen_ids", "rejected_ids")
    return [DataFormat(name="token_pair", fields=fields, convert=pair_of, roles=("chosen", "rejected"))]


@hookimpl
def hub_run_start(cfg: RunConfig, run: Run) -> None:
    StepLog(run.path.parent).begin()


@hookimpl
def hub_log(run: Run, step: int, metrics: Mapping[str, float]) -> None:
    folder, tokens = run.path.parent, int(metrics["num_tokens"])
    first, _, last = os.environ.get(PROFILE, "").partition(":")
    for _, _, counts in _open:
        counts.append(tokens)
    if last == str(step):
        _finish(folder)
    StepLog(folder).end(step, tokens, metrics["loss"])
    if first == str(step):
        _begin()


def _begin() -> None:
    import torch
    from torch.profiler import ProfilerActivity, profile

    profiler = profile(activities=[ProfilerActivity.CUDA if torch.cuda.is_available() else ProfilerActivity.CPU])
    profiler.start()
    _open.append((profiler, time.perf_counter(), []))


def _finish(folder: Any) -> None:
    import torch

    profiler, begun, counts = _open.pop()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begun
    profiler.stop()
    profiler.export_chrome_trace(str(folder / "trace.json"))
    (folder / "profile.json").write_text(json.dumps({"seconds": seconds, "tokens": counts}), encoding="utf-8")
