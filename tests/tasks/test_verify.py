"""`hub verify`: it passes on what is right, notices what is broken in training's own functions, and leaves no model."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial

import hub_sft.recipe
import pytest
import torch
from zoo.zoo import zoo_model

from hub.tasks.verify import gradients as measure
from hub.train import step
from hub.train.batch.collate import pack
from hub.train.layout import layout
from hub.train.layout.isolation import Trial
from hub.train.losses import objective
from hub.train.losses.causal_lm import causal_lm_loss
from hub.train.losses.objective import NextToken
from hub.train.recipe import Recipe

pytestmark = pytest.mark.usefixtures("warm_python")

RUN = ["verify", "model=tiny", "data=tiny", "algo.effective_batch_size=8"]


def verified(folder) -> dict:
    return json.loads((folder / "runs" / "latest" / "verify.json").read_text())


@pytest.mark.parametrize("algo", ["sft", "lora_sft"])
def test_a_right_loop_is_verified_and_nothing_is_trained_or_saved(hub, tmp_path, algo):
    said = hub(*RUN, f"algo={algo}", "launch=inline", *(["algo.lora_dropout=0.1"] if algo == "lora_sft" else []))
    assert said.code == 0, said.err
    run = tmp_path / "runs" / "latest"
    assert json.loads((run / "result.json").read_text())["status"] == "verified"
    assert {file.name for file in run.iterdir()} == {"run.yaml", "plan.json", "result.json", "verify.json", "log.txt"}
    found = verified(tmp_path)
    assert found["holds"]
    assert found["dtype"] == "float32", "what the machine prefers would hide mistakes"
    assert found["tolerance"] == 1e-6
    held = {group: [c for c in found["checks"] if c["group"] == group] for group in ("layout", "isolation", "mistakes")}
    assert all(check["holds"] for group in held.values() for check in group)
    assert [len(group) for group in held.values()] == [9, 2, 3]
    assert min(check["value"] for check in held["mistakes"]) > 1000 * found["tolerance"]
    assert "[[" in found["sample"]
    assert "<|im_end|>]]" in found["sample"]


@pytest.mark.slow
def test_two_processes_give_the_gradient_of_one_and_of_each_other(tmp_path):
    command = [sys.executable, "-m", "hub", *RUN, "algo=sft", "launch.nproc_per_node=2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the same gradient on all ranks") == 8
    assert verified(tmp_path)["num_processes"] == 2


def shifted_count(monkeypatch):
    monkeypatch.setattr(objective, "num_loss_tokens", lambda sample: int(sample.loss_mask.sum()) + 1)


def leaking(samples):
    batch = pack(samples)
    return replace(batch, position_ids=torch.arange(batch.num_tokens)[None])


def leaking_attention(monkeypatch):
    monkeypatch.setattr(layout, "pack", leaking)


def mean_per_micro_batch(monkeypatch):
    real = step.accumulate_gradients

    def mean(session, model, units, layout, criterion, weights):
        of_batch = replace(criterion, loss=lambda m, b: criterion.loss(m, b) / max(1, len(b.targets)))
        return real(session, model, units, layout, of_batch, weights)

    monkeypatch.setattr(step, "accumulate_gradients", mean)


def dropped_sample(monkeypatch):
    real = layout.batches.split

    def dropping(lengths, *rest):
        parts = real(lengths, *rest)
        parts[0][-1] = parts[0][-1][1:]
        return parts

    monkeypatch.setattr(layout.batches, "split", dropping)


def a_scale_that_drifts(monkeypatch):
    real, calls = NextToken.divisor, iter(range(100))
    monkeypatch.setattr(NextToken, "divisor", lambda self, units: real(self, units) * (1 + 2e-8 * next(calls)))


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (shifted_count, "layout: as this run would train"),
        (leaking_attention, "layout: as this run would train"),
        (mean_per_micro_batch, "layout: as this run would train"),
        (dropped_sample, r"layout: as this run would train: .* loss tokens; the data has"),
        (a_scale_that_drifts, "determinism: the same step twice"),
    ],
)
def test_a_broken_loop_fails_with_one_line(hub, tmp_path, monkeypatch, broken, words):
    broken(monkeypatch)
    said = hub(*RUN, "algo=sft", "launch=inline")
    assert said.code == 1
    assert len(said.problems) == 1
    assert re.match(f"check failed: {words}", said.problems[0]), said.problems
    assert not verified(tmp_path)["holds"]
    assert json.loads((tmp_path / "runs" / "latest" / "result.json").read_text())["status"] == "failed"


def test_packing_that_leaks_fails_the_isolation_of_the_users_samples(hub, monkeypatch):
    monkeypatch.setattr(measure.collate, "pack", leaking)
    said = hub(*RUN, "algo=sft", "launch=inline")
    assert said.code == 1
    assert said.problems[0].startswith("check failed: isolation: one packed sample is changed")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_leaks_little_fails_it_too(hub, monkeypatch, dtype):
    monkeypatch.setattr(Trial, "can_pack", lambda trial: (True, "trusted"))
    said = hub("verify", "algo=sft", f"model.path={zoo_model('openai-gpt')}", f"model.dtype={dtype}", *RUN[2:], "launch=inline")
    assert said.code == 1
    assert said.problems[0].startswith("check failed: isolation: one packed sample is changed")


@pytest.mark.slow
def test_a_step_that_runs_out_of_memory_is_compared_in_the_layout_that_fit(hub, monkeypatch):
    def little_memory(model, batch):
        if batch.input_ids.numel() > 400:
            raise torch.OutOfMemoryError("no room")
        return causal_lm_loss(model, batch)

    monkeypatch.setattr(hub_sft.recipe, "Recipe", partial(Recipe, loss=little_memory))
    said = hub(*RUN, "algo=sft", "algo.effective_batch_size=16", "launch=inline")
    assert said.code == 0, said.err
    assert "loss tokens, retried with at most" in said.out


def test_a_mistake_that_goes_unnoticed_fails_the_proof(hub, monkeypatch):
    monkeypatch.setattr(measure, "FLOOR", {("cpu", torch.float32): 0.02})
    said = hub(*RUN, "algo=sft", "launch=inline")
    assert said.code == 1
    assert "mistakes: the count of loss tokens is off by one: NOT detected" in said.err


def test_a_loss_of_the_algorithms_own_is_its_own_reference(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_sft.recipe, "Recipe", partial(Recipe, loss=lambda model, batch: 3 * causal_lm_loss(model, batch)))
    assert hub(*RUN, "algo=sft", "launch=inline").code == 0
    assert verified(tmp_path)["reference"] == "the algorithm's own loss"


@pytest.mark.parametrize("option", ["resume=latest", "algo.lora_rr=3", "task=prove"])
def test_a_mistake_in_the_options_is_2(hub, tmp_path, option):
    said = hub("train" if option.startswith("task") else "verify", "model=tiny", "data=tiny", "algo=lora_sft", option)
    assert said.code == 2
    assert len(said.problems) == 1
    assert not (tmp_path / "runs").exists()
