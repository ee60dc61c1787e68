"""The loop when a step fails: out of memory, NaN, spikes, an evaluation that does not fit."""

import errno
import json
import math
import os
import signal
import threading
import time
from dataclasses import replace
from functools import partial

import hub_sft.recipe
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from hub import ConfigError, DivergedError, HubError, LaunchError, ModelError, compose
from hub.errors import Interrupted
from hub.launch.launcher import launch
from hub.models.structure import layers_of
from hub.result import Result, read_metrics
from hub.run import Run
from hub.system.signals import stop_request
from hub.train import loop
from hub.train.checkpoints import rehearsal
from hub.train.layout.isolation import Trial
from hub.train.losses.causal_lm import causal_lm_loss, token_log_probabilities
from hub.train.losses.objective import NextToken
from hub.train.meters import SpikeMeter
from hub.train.recipe import Recipe
from hub.train.setup import setup
from hub.train.step import Criterion

OPTIONS = ["algo=sft", "model=tiny", "data=tiny", "launch=inline", "model.dtype=float32", "algo.effective_batch_size=16",
           "algo.learning_rate=1e-3", "algo.max_steps=8"]  # fmt: skip


def train(tmp_path, *more: str):
    return launch(compose(*OPTIONS, f"output_dir={tmp_path}", *more))


def out_of_memory_above(monkeypatch, num_tokens: int) -> None:
    def limited(model, batch):
        if batch.input_ids.numel() > num_tokens:
            raise torch.OutOfMemoryError("no room")
        return causal_lm_loss(model, batch)

    monkeypatch.setattr(hub_sft.recipe, "Recipe", partial(Recipe, loss=limited))
    real = Recipe(model=None, save=None).criterion
    assert real == Criterion(real.objective, causal_lm_loss, token_log_probabilities)
    assert type(real.objective) is NextToken


def test_out_of_memory_costs_nothing_but_time(tmp_path, monkeypatch, capsys):
    """That the numbers are those of a run with room: test_reference.py."""
    out_of_memory_above(monkeypatch, 300)
    found = train(tmp_path)
    assert found.effective_batch_size == 16
    assert "Next time type algo.max_tokens_per_gpu=256" in capsys.readouterr().out
    assert json.loads((found.run_path / "plan.json").read_text())["max_tokens_per_gpu"] == 256


def test_layers_are_checkpointed_before_micro_batches_get_smaller_when_memory_runs_out(tmp_path, monkeypatch, capsys):
    expected = train(tmp_path / "roomy")

    def limited(model, batch):
        if model.training and not all("_checkpointed" in layer.forward.__qualname__ for layer in layers_of(model)):
            raise torch.OutOfMemoryError("no room")
        return causal_lm_loss(model, batch)

    monkeypatch.setattr(hub_sft.recipe, "Recipe", partial(Recipe, loss=limited))
    found = train(tmp_path / "narrow")
    assert [line["loss"] for line in found.metrics] == [line["loss"] for line in expected.metrics]
    plans = [json.loads((result.run_path / "plan.json").read_text()) for result in (expected, found)]
    assert plans[0]["layers_recomputed"] == 0
    assert plans[1]["layers_recomputed"] == plans[1]["num_layers"]
    assert plans[1]["max_tokens_per_gpu"] == plans[0]["max_tokens_per_gpu"]
    assert f"{plans[1]['num_layers']} layers use activation checkpointing from now on instead of 0" in capsys.readouterr().out


def test_a_sample_that_does_not_fit_alone_ends_the_run_with_what_to_type(tmp_path, monkeypatch):
    out_of_memory_above(monkeypatch, 20)
    with pytest.raises(ModelError, match=r"algo\.gradient_checkpointing=all"):
        train(tmp_path)


def test_no_room_for_the_optimizers_state_ends_the_run_with_what_to_type(tmp_path, monkeypatch):
    def step(self, closure=None):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(ModelError, match=r"algo\.optimizer=adamw_8bit"):
        train(tmp_path)


@pytest.mark.parametrize(("place", "name"), [(Trial, "_run"), (rehearsal, "read_back")])
def test_a_signal_that_is_taken_for_a_models_failure_stops_the_run_before_its_first_step(tmp_path, monkeypatch, place, name):
    """Else the run trains in another layout than it would have, or says that its model can't be saved."""
    monkeypatch.setattr(place, name, lambda *args, **others: stop_request._receive(signal.SIGTERM, None))
    with pytest.raises(Interrupted, match="stopped by SIGTERM before training began"):
        train(tmp_path, "run_name=it")
    assert Result.read(tmp_path / "it/result.json").status == "interrupted"
    assert not read_metrics(tmp_path / "it/metrics.jsonl")
    assert not list((tmp_path / "it").glob("checkpoints/step-*"))


def test_a_disk_that_is_full_before_training_is_said_in_a_line(tmp_path, monkeypatch):
    def full(model, folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))

    monkeypatch.setattr(rehearsal, "make_generation_config_savable", full)
    with pytest.raises(LaunchError, match=r"^a disk is full or broken: OSError: .*No space left.*output_dir=FOLDER"):
        train(tmp_path)


@pytest.mark.parametrize(("place", "name"), [(setup, "save_whole_model"), (loop.Tracking, "end"), (Run, "write_result")])
def test_a_signal_once_training_is_done_does_not_cost_the_model(tmp_path, monkeypatch, place, name):
    real = getattr(place, name)

    def interrupted(*args, **others):
        if not stop_request.in_loop:  # the model is saved once before training, to try it
            return real(*args, **others)
        monkeypatch.setattr(stop_request, "signal_number", None)
        stop_request._receive(signal.SIGTERM, None)
        return real(*args, **others)

    monkeypatch.setattr(place, name, interrupted)
    result = train(tmp_path)
    assert stop_request.signal_number == signal.SIGTERM
    assert result.status == "completed"
    assert load_file(result.model_path / "model.safetensors")


def broken_steps(monkeypatch, numbers: set[int]) -> None:
    real, count = loop.train_step, iter(range(1, 100))

    def sometimes(session, model, optimizer, units, layout, norm, criterion, **rest):
        if next(count) in numbers:
            criterion = replace(criterion, loss=lambda m, b: causal_lm_loss(m, b) * math.nan)
        return real(session, model, optimizer, units, layout, norm, criterion, **rest)

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
    result = Result.read(tmp_path / "latest" / "result.json")
    losses = [line["loss"] for line in result.metrics[:3]]
    assert (result.status, result.num_steps, result.model_path) == ("failed", 6, (folder / "step-00000006/model").resolve())
    assert result.train_loss == pytest.approx(sum(losses) / 3)
    assert result.eval_loss_before == result.eval_loss == result.metrics[0]["eval_loss_before"]


WAYS = {
    "a step": (loop, "train_step", RuntimeError("it broke"), "it broke", 3),
    "an evaluation": (loop._Fit, "_measure", ModelError("no room"), "no room", 4),
    "an observer": (loop._Fit, "_observe", ConfigError("enough"), "enough", 4),
    "a full disk": (Run, "log", OSError(28, "No space left on device"), "make room and type python -m hub resume=", 4),
    "a full disk for the model": (
        loop, "full_weights", SafetensorError("I/O error: No space left on device (os error 28)"), "ended after step 8", 8
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_the_result_of_a_run_that_an_error_ends_has_the_steps_and_losses_that_happened(tmp_path, monkeypatch, way):
    place, name, error, message, num_steps = WAYS[way]
    real, count = getattr(place, name), iter(range(100))

    def failing(*args, **named):
        if args[1:2] not in ((), ("hub_log",)) and way == "an observer":
            return real(*args, **named)
        # Evaluated before training and after step 4, logged and observed after step 4.
        if next(count) == {"a step": 3, "an evaluation": 1}.get(way, 0):
            raise error
        return real(*args, **named)

    monkeypatch.setattr(place, name, failing)
    with pytest.raises((HubError, RuntimeError), match=message) as caught:
        train(tmp_path, "algo.log_every_steps=4", "algo.eval_every_steps=4", "algo.save_every_steps=3")
    assert isinstance(caught.value, HubError) or way == "a step"
    result = Result.read(tmp_path / "latest" / "result.json")
    assert (result.status, result.num_steps) == ("failed", num_steps)
    assert result.train_loss is not None
    assert result.eval_loss_before is not None
    if way != "a full disk":  # the last step is logged, though it was not its turn
        assert result.metrics[-1]["step"] == num_steps
        assert Run(result.run_path).reached() == {
            name: pytest.approx(getattr(result, name))
            for name in ("num_steps", "effective_batch_size", "train_loss", "eval_loss_before", "eval_loss")
        } | {"base_model_path": result.base_model_path}


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


LOGS = [("hub_log", number) for number in range(9)]
SAVES = [("hub_checkpoint", number) for number in range(9)]


@pytest.mark.parametrize(
    ("every", "events"),
    [
        (2, [*LOGS[1:5], SAVES[2], *LOGS[5:7], SAVES[4], *LOGS[7:9], SAVES[6], SAVES[8]]),
        (3, [*LOGS[1:6], SAVES[3], *LOGS[6:9], SAVES[6], SAVES[8]]),
    ],
    ids=["the next save waits", "told at the end of the step in which it is complete"],
)
def test_steps_go_on_while_a_checkpoint_is_written(tmp_path, monkeypatch, every, events):
    from hub.train.checkpoints import save

    real, found = save.seal, []

    def slow(folder, files):
        """The disk is done with a save only when two more steps are logged."""
        saved, deadline = int(folder.name.split("-")[1].split(".")[0]), time.monotonic() + 60
        while read_metrics(tmp_path / "latest/metrics.jsonl")[-1]["step"] < min(saved + 2, 8):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        return real(folder, files)

    def observe(self, hook, **values):
        found.append((hook, values.get("step")))
        if every == 3 and found[-1] == LOGS[5]:
            self.checkpoints._writer._save.join()

    monkeypatch.setattr(save, "seal", slow)
    monkeypatch.setattr(loop._Fit, "_observe", observe)
    assert train(tmp_path, f"algo.save_every_steps={every}").status == "completed"
    assert found[1:] == events


def test_a_write_that_fails_in_the_background_is_said_and_training_goes_on(tmp_path, monkeypatch, capsys):
    from hub.train.checkpoints import save

    real = save.seal

    def full(folder, files):
        if "02.partial" in folder.name:
            raise OSError(28, "No space left on device")
        return real(folder, files)

    monkeypatch.setattr(save, "seal", full)
    result = train(tmp_path, "algo.save_every_steps=2")
    assert "no checkpoint could be written after step 2: [Errno 28] No space left on device. Training continues" in (
        capsys.readouterr().out
    )
    assert sorted(path.name for path in (result.run_path / "checkpoints").iterdir()) == ["step-00000006", "step-00000008"]


def test_an_error_that_ends_the_run_leaves_the_checkpoint_that_was_being_written(tmp_path, monkeypatch):
    from hub.train.checkpoints import save

    broken_steps(monkeypatch, set())
    working, real, told = loop.train_step, save.seal, threading.Event()

    def slow(folder, files):
        told.wait(60)
        return real(folder, files)

    def failing(*args, **named):
        if (tmp_path / "latest/checkpoints").exists():
            told.set()
            raise ModelError("it broke")
        return working(*args, **named)

    monkeypatch.setattr(save, "seal", slow)
    monkeypatch.setattr(loop, "train_step", failing)
    with pytest.raises(ModelError, match="it broke"):
        train(tmp_path, "algo.save_every_steps=2")
    assert [path.name for path in (tmp_path / "latest/checkpoints").iterdir()] == ["step-00000002"]


def test_an_evaluation_without_progress_lowers_the_learning_rate_of_the_next_step_and_a_resumed_run_keeps_it(
    tmp_path, monkeypatch, capsys
):
    worse = iter(range(100))
    monkeypatch.setattr(loop._Fit, "_measure", lambda self: float(next(worse)))
    options = ["algo.lr_scheduler=reduce_lr_on_plateau", "algo.lr_patience=0", "algo.lr_factor=0.5", "algo.warmup_steps=0",
               "algo.eval_every_steps=2", "algo.save_every_steps=4", "run_name=it"]  # fmt: skip
    steps = iter(range(1, 100))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "stop_requested", lambda: signal.SIGTERM if next(steps) == 5 else None)
        with pytest.raises(Interrupted):
            train(tmp_path, *options)
    result = launch(compose(f"resume={tmp_path / 'it'}"))
    assert [line["learning_rate"] for line in result.metrics] == [1e-3] * 4 + [5e-4] * 2 + [2.5e-4] * 2
    assert capsys.readouterr().out.count("step 4: learning rate 0.0005 from now on (reduce_lr_on_plateau)") == 1
