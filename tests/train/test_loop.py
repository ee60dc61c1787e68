"""What the loop does when a step goes wrong: memory, NaN, spikes, an evaluation that does not fit."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from hub import DivergedError, ModelError, compose
from hub.launch import launch
from hub.run import Run, read_metrics
from hub.train import loop
from hub.train.loss import causal_lm_loss
from hub.train.meters import SpikeMeter

OPTIONS = ["algo=sft", "model=tiny", "data=tiny", "launch=inline", "model.dtype=float32", "algo.effective_batch_size=16",
           "algo.learning_rate=1e-3", "algo.max_steps=8"]  # fmt: skip


def train(tmp_path, *more: str):
    return launch(compose(*OPTIONS, f"output_dir={tmp_path}", *more))


def out_of_memory_above(monkeypatch, num_tokens: int) -> None:
    def limited(model, batch):
        if batch.input_ids.numel() > num_tokens:
            raise torch.OutOfMemoryError("no room")
        return causal_lm_loss(model, batch)

    real = loop.fit.__defaults__
    monkeypatch.setattr(loop.fit, "__defaults__", (limited,))
    assert real == (causal_lm_loss,)


def test_out_of_memory_costs_nothing_but_time(tmp_path, monkeypatch, capsys):
    expected = train(tmp_path / "roomy")
    out_of_memory_above(monkeypatch, 300)
    found = train(tmp_path / "narrow")
    for mine, theirs in zip(found.metrics, expected.metrics, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert mine["num_samples"] == theirs["num_samples"]
    assert found.effective_batch_size == 16
    assert "Next time type algo.max_tokens_per_gpu=256" in capsys.readouterr().out
    assert json.loads((found.run_path / "plan.json").read_text())["max_tokens_per_gpu"] == 256


def test_a_sample_that_does_not_fit_alone_ends_the_run_with_what_to_type(tmp_path, monkeypatch):
    out_of_memory_above(monkeypatch, 20)
    with pytest.raises(ModelError, match=r"algo\.gradient_checkpointing=all"):
        train(tmp_path)


def broken_steps(monkeypatch, numbers: set[int]) -> None:
    real, count = loop.train_step, iter(range(1, 100))

    def sometimes(session, model, optimizer, samples, layout, norm, loss):
        broken = next(count) in numbers
        return real(
            session, model, optimizer, samples, layout, norm,
            (lambda m, b: causal_lm_loss(m, b) * math.nan) if broken else loss,
        )  # fmt: skip

    monkeypatch.setattr(loop, "train_step", sometimes)


def test_a_step_with_nan_is_passed_over_and_counted(tmp_path, monkeypatch):
    broken_steps(monkeypatch, {3, 6})
    result = train(tmp_path, "algo.save_every_steps=7")
    assert result.status == "completed"
    lines = result.metrics
    assert [line["step"] for line in lines if line.get("skipped")] == [3, 6]
    assert lines[2]["loss"] == "nan"
    assert math.isfinite(result.train_loss)
    state = json.loads((result.run_path / "checkpoints/step-00000007/state.json").read_text())
    assert state["skipped"] == 2


def test_several_nan_in_a_row_end_the_run_with_the_last_good_weights_and_advice(tmp_path, monkeypatch):
    broken_steps(monkeypatch, {4, 5, 6, 7})
    with pytest.raises(DivergedError, match=r"3 steps in a row .* chats\.jsonl:\d+.* algo\.learning_rate"):
        train(tmp_path, "algo.save_every_steps=3", "algo.keep_checkpoints=5")
    folder = tmp_path / "latest" / "checkpoints"
    good, last = (load_file(folder / name / "trainable.safetensors") for name in ("step-00000003", "step-00000006"))
    assert all(torch.equal(good[name], last[name]) for name in good)
    assert json.loads((tmp_path / "latest" / "result.json").read_text())["status"] == "failed"


def test_a_loss_spike_is_noticed_and_noise_is_not():
    meter = SpikeMeter()
    assert not any(meter.is_spike(2.0 + 0.1 * (-1) ** i) for i in range(40))
    assert meter.is_spike(9.0)


def test_metrics_cut_short_by_a_kill_are_read_up_to_the_last_whole_line(tmp_path):
    run = Run(tmp_path)
    run.log({"step": 1, "loss": 2.0})
    run.log({"step": 2, "loss": float("inf")})
    with run.metrics_file.open("a") as file:
        file.write('{"step": 3, "lo')
    assert read_metrics(run.metrics_file) == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": "inf"}]
