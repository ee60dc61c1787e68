"""`plan.measure`: short runs of a few layers correct the plan of all layers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hub.compose.compose import compose
from hub.config.plan import PlanConfig
from hub.config.schema import RunConfig
from hub.errors import ConfigError
from hub.launch.launcher import launch
from hub.plan import gpus
from hub.plan.gpus import check_measurable
from hub.plan.prediction import MemoryPlan, Part
from hub.plan.speed import Speed
from hub.result import Result
from hub.system.known_gpus import Gpu, known_gpus
from hub.tasks.plan.cases import Case, OnGpu, Session
from hub.tasks.plan.measuring import ShortRun, corrected, measured
from hub.testing import tiny_model

H100 = known_gpus()["h100"]


def case_of(*words: str) -> Case:
    cfg = compose("algo=lora_sft", "algo.torch_compile=none", "algo.backend=native", *words)
    return Case.of(Session(lambda more: cfg, print), cfg)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of eight layers, of which only config.json is there."""
    folder = tmp_path_factory.mktemp("deep")
    config = json.loads((tiny_model(folder / "tiny") / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 8}))
    return folder


def short(num_layers: int, **values: float) -> ShortRun:
    known = {
        "peak_bytes": 5000.0 + 700 * num_layers,
        "predicted_bytes": 4000.0 + 600 * num_layers,
        "seconds_per_token": 3e-5 + 2e-5 * num_layers,
        "predicted_seconds": 1e-5 + 1e-5 * num_layers,
        "first_step_seconds": 20.0 + num_layers,
        "weight_bytes": 0.0,
    }
    return ShortRun(num_layers=num_layers, **known | values)


def test_what_two_runs_missed_is_carried_on_to_all_layers() -> None:
    memory = MemoryPlan(
        parts=(Part("weights", 9000, ""),), max_tokens=64, num_layers=8, num_checkpointed=0, offload=False, tiles=False,
        strategy="ddp", world=1, compiled=True, fits=True, missing_bytes=0, room_bytes=0, memory_bytes=10_000, plain=(1.0, 0.0),
        checkpointed=(1.0, 0.0),
    )  # fmt: skip
    speed = Speed(
        low=900.0, middle=1000.0, high=1100.0, limit="", measured=False, flops_per_token=1.0, share_of_peak=0.4, because=""
    )  # fmt: skip
    found = OnGpu(gpu=H100, memory=memory, speed=speed, cost=None, first_step=(1.0, 2.0, 3.0))
    better = corrected(found, [short(2), short(4)])
    assert better.memory.torch_bytes == 9000 + 1000 + 100 * 8
    assert (better.memory.fits, better.memory.missing_bytes) == (False, 800)
    assert better.speed is not None
    assert better.speed.middle == pytest.approx(1000 * (1 + 8) / (3 + 2 * 8))
    assert better.first_step is not None
    assert better.first_step[1] == pytest.approx(24, abs=0.1)
    assert "2 and 4 of its 8 layers were run here" in better.first_because
    assert corrected(found, [short(2)]).memory.torch_bytes == 9000 + 1200


@pytest.mark.slow
def test_short_runs_are_true_runs_of_a_model_without_weights(deep: Path) -> None:
    torch.manual_seed(0)
    case = case_of(f"model.path={deep}", "data.max_seq_len=64", "launch.mode=inline")
    found = case.on(H100, 1)
    found = replace(found, memory=replace(found.memory, tokens_at_peak=128))
    seen: list[RunConfig] = []

    def train(cfg: RunConfig) -> Result:
        seen.append(cfg)
        return launch(cfg)

    better = measured(case, found, train)
    assert [cfg.algo.max_tokens_per_gpu for cfg in seen] == [128, 128]
    assert better.speed is not None
    assert better.speed.measured
    assert better.first_step is not None
    assert 0 < better.first_step[1] < 600


@pytest.mark.parametrize(
    ("here", "plan", "line"),
    [
        (None, {}, "which has no known GPU"),
        (H100, {"gpu": "rtx4090"}, "this machine's h100, not on rtx4090"),
        (H100, {"gpu": "h100", "gpus": 2}, "on 2 GPUs, and this machine has 1"),
    ],
)
def test_only_gpus_that_are_here_are_measured(
    here: Gpu | None, plan: dict[str, Any], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "gpu_here", lambda known: here)
    monkeypatch.setattr(gpus, "num_visible_gpus", lambda: 1)
    with pytest.raises(ConfigError, match=line):
        check_measurable(PlanConfig(measure=True, **plan), "auto")
