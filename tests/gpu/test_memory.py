"""Out of GPU memory: a step is retried in smaller micro-batches, and before that with activation checkpointing."""

import json

import pytest

from hub import compose
from hub.launch.launcher import launch
from hub.system.memory import CONTEXT, GIB
from hub.train.layout import activations

BESIDE_TORCH = CONTEXT / GIB
"""Of a limit, what the driver takes."""

LAYOUT = ("algo=sft", "algo.effective_batch_size=256", "algo.max_steps=3", "launch=inline", "algo.num_epochs=9")


def train(parts, folder, *more: str):
    result = launch(compose(*LAYOUT, *parts, f"output_dir={folder}", *more))
    return result, json.loads((result.run_path / "plan.json").read_text())


def test_a_token_budget_set_too_high_gives_the_same_run_in_smaller_micro_batches(parts, tmp_path):
    bound = ("algo.max_tokens_per_gpu=1000000", "algo.gradient_checkpointing=none", "model.dtype=float32")
    free, plan = train(parts, tmp_path / "free", *bound)
    assert plan["max_tokens_per_gpu"] == 1000000
    limit = f"launch.gpu_memory_gb={BESIDE_TORCH + 0.5 * free.peak_memory_gb}"
    short, plan = train(parts, tmp_path / "short", *bound, limit)
    assert plan["max_tokens_per_gpu"] < 1000000
    assert plan["max_tokens_per_gpu_because"] == "memory ran out above it"
    assert short.peak_memory_gb < 0.5 * free.peak_memory_gb
    losses = [[line["loss"] for line in result.metrics] for result in (free, short)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_less_memory_makes_layers_checkpoint_and_is_not_exceeded(parts, tmp_path):
    bound = "algo.max_tokens_per_gpu=30000"
    free, plan = train(parts, tmp_path / "free", bound)
    assert plan["layers_recomputed"] == 0, plan
    limit = 0.75 * free.peak_memory_gb
    short, plan = train(parts, tmp_path / "short", bound, f"launch.gpu_memory_gb={BESIDE_TORCH + limit}")
    assert plan["layers_recomputed"] > 0, plan
    assert plan["max_tokens_per_gpu"] == 30000, plan
    assert short.peak_memory_gb < limit, plan
    losses = [[line["loss"] for line in result.metrics] for result in (free, short)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_plan_that_needs_too_much_memory_makes_more_layers_checkpoint(parts, tmp_path, monkeypatch):
    bound = "algo.max_tokens_per_gpu=30000"
    free, plan = train(parts, tmp_path / "free", bound)
    assert plan["layers_recomputed"] == 0, plan
    monkeypatch.setattr(activations, "choose_max_tokens", lambda *options: (30000, 0))
    limit = 0.75 * free.peak_memory_gb
    short, plan = train(parts, tmp_path / "short", bound, f"launch.gpu_memory_gb={BESIDE_TORCH + limit}")
    assert plan["layers_recomputed"] > 0, plan
    assert plan["max_tokens_per_gpu"] == 30000, plan
    losses = [[line["loss"] for line in result.metrics] for result in (free, short)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_memory_is_flat_over_500_steps(parts, tmp_path):
    steps = ["algo.max_steps=500", "algo.num_epochs=100", "algo.effective_batch_size=16", "algo.max_tokens_per_gpu=4000"]
    options = [
        "algo=sft",
        "launch=inline",
        "algo.log_every_steps=50",
        "data.eval_fraction=0.05",
        "algo.eval_every_steps=100",
        *steps,
    ]
    result = launch(compose(*options, *parts, f"output_dir={tmp_path}"))
    peaks = [line["peak_memory_gb"] for line in result.metrics]
    assert len(peaks) >= 10
    assert peaks[-1] == pytest.approx(peaks[1], rel=0.02), peaks
