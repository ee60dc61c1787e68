"""A run's memory as `plan` predicts it, in a process beside the run, and what became of it: both stand in the result."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import torch

from hub.data.samples.sample import mask_sum
from hub.models.load import load_config
from hub.plan.learned import Measured, key_of, remember, steady_speed
from hub.result import METRICS, Outcome, read_metrics
from hub.system.files import write_json
from hub.system.known_gpus import by_driver_name, known_gpus
from hub.system.memory import GIB
from hub.tasks.plan.beside import PREDICTED
from hub.train.layout.layout import expected_tokens
from hub.train.layout.memory_budget import draw_loads
from hub.train.setup.setup import Setup

NUM_LENGTHS = 1000
"""Samples whose lengths stand for all."""


class Prediction:
    """What `plan` says of a run that has begun. On rank 0 of runs on GPUs: CPU memory is not predicted.

    Args:
        setup: the run.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._is_on = setup.run.is_main and self._gpu() is not None
        self._process = self._start() if self._is_on else None

    def _gpu(self) -> str | None:
        """The name of this process's GPU in the table of GPUs. None: it trains on a CPU."""
        device = self._setup.session.device
        if device.type != "cuda":
            return None
        gpu = by_driver_name(torch.cuda.get_device_name(device), known_gpus(self._setup.cfg.plan.gpus_file))
        return gpu.name if gpu else "unknown"

    def _start(self) -> "subprocess.Popen[str] | None":
        setup, group = self._setup, self._setup.session.group
        some = setup.data.train[:NUM_LENGTHS]
        lengths = [len(unit) for unit in some]
        facts = {
            "memory_bytes": torch.cuda.get_device_properties(group.device).total_memory,  # the limit is in run.yaml
            "capability": torch.cuda.get_device_capability(group.device),
            "world": group.world,
            "longest": setup.data.longest,
            "loads": draw_loads(lengths, setup.source.batch_size / group.world),
            "num_tokens": expected_tokens(setup),
            "loss_share": sum(map(mask_sum, some)) / max(1, sum(lengths)),
            "folder": str(setup.base_path),
        }
        # No GPU: a context of its own would take half a GiB of it. One thread: the run needs the others.
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            environment.pop(name, None)
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "hub.tasks.plan.beside", str(setup.run.path)],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True, env=environment,
            )  # fmt: skip
            assert process.stdin is not None
            process.stdin.write(json.dumps(facts))
            process.stdin.close()
        except OSError:
            return None
        return process

    def close(self) -> None:
        """End the process if it still runs: the run waits for nothing."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def compared(self, outcome: Outcome) -> Outcome:
        """The outcome with the predicted peak. A line says both, and the next plan of such a run learns from it."""
        self.close()
        file = self._setup.run.path / PREDICTED
        predicted: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        measured = outcome.peak_memory_gb
        if not self._is_on or measured is None:
            return outcome
        self._remember(outcome, int(predicted.get("torch_peak_bytes", 0)))
        if not predicted:
            return outcome
        peak = predicted["torch_peak_bytes"] / GIB
        self._setup.run.say(f"peak memory {measured:.2f} GiB, predicted {peak:.2f} GiB ({peak / max(measured, 1e-9) - 1:+.1%})")
        self._setup.run.write_plan(predicted_peak_memory_gb=round(peak, 3), peak_memory_gb=measured)
        write_json(file, predicted | {"measured_peak_bytes": round(measured * GIB)})
        return replace(outcome, predicted_peak_memory_gb=round(peak, 3))

    def _remember(self, outcome: Outcome, predicted: int) -> None:
        """Keep what was measured, for the next plan of such a run."""
        setup, group = self._setup, self._setup.session.group
        if not setup.cfg.plan.learn or outcome.peak_memory_gb is None:
            return
        shape = load_config(setup.cfg.model, setup.base_path).get_text_config().to_dict()
        longest = setup.data.longest
        plan = json.loads((setup.run.path / "plan.json").read_text(encoding="utf-8"))
        remember(
            key_of(setup.algorithm, setup.cfg, shape, self._gpu() or "unknown", group.world, longest),
            Measured(
                peak_bytes=round(outcome.peak_memory_gb * GIB),
                tokens_per_second=steady_speed(read_metrics(setup.run.path / METRICS)) or 0.0,
                first_step_seconds=float(plan.get("first_step_seconds") or 0.0),
                longest=longest,
                max_tokens=int(plan.get("max_tokens_per_gpu") or 0),
                num_checkpointed=int(plan.get("layers_recomputed") or 0),
                predicted_peak_bytes=predicted,
            ),
        )
