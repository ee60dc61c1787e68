"""What a run has measured before its first step is reused by the next one of its kind, and by no other."""

import json
import time
from types import SimpleNamespace

import hub_lora_sft.recipe
import pytest
import torch

from hub import compose
from hub.launch.launcher import launch
from hub.models import causality
from hub.run import Run
from hub.system import answers
from hub.train import measured_before
from hub.train.layout import isolation
from hub.train.layout.kept_memory import measured_memory
from hub.train.layout.memory_budget import Line, PassMemory
from hub.train.losses.causal_lm import causal_lm_loss
from hub.train.measured_before import MeasuredBefore
from tests.simulated_memory import SimulatedMemory

OPTIONS = ["algo=lora_sft", "model=tiny", "data=tiny", "launch=inline", "algo.max_steps=2", "algo.lora_dropout=0.1"]


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Trains, and returns the losses, plan.json, and which measurements took place."""
    passes = []
    look, leak = causality.look_ahead, isolation.Trial.leak
    monkeypatch.setattr(causality, "look_ahead", lambda *args: [passes.append("causality"), look(*args)][1])
    monkeypatch.setattr(isolation.Trial, "leak", lambda self: [passes.append("isolation"), leak(self)][1])

    def run(*more):
        passes.clear()
        result = launch(compose(*OPTIONS, f"output_dir={tmp_path}", *more))
        plan = json.loads((result.run_path / "plan.json").read_text())
        return [(line["loss"], line["grad_norm"]) for line in result.metrics], plan, list(passes)

    return run


def test_the_next_run_of_a_kind_measures_nothing_and_has_the_same_losses(train, capsys, monkeypatch):
    losses, plan, passes = train()
    assert passes == ["causality", "isolation"]
    assert "measured_before" not in plan
    assert sum(plan["timeline"].values()) == pytest.approx(plan["first_step_seconds"], abs=0.02)
    assert {"checks", "data", "weights", "rehearsal", "isolation", "step"} <= set(plan["timeline"])
    capsys.readouterr()
    monkeypatch.setenv("TRITON_PTXAS_PATH", "/compiler/writes/this")
    again, reused, passes = train("algo.learning_rate=2e-4", "launch.timeline=true")
    assert (again, passes) == (losses, [])
    assert reused["measured_before"]["what"] == ["rehearsal", "causality", "isolation"]
    at = reused["measured_before"]["at"]
    assert reused["packed_because"] == f"{plan['packed_because']}; measured before, at {at}"
    said = capsys.readouterr().out
    assert f"measured before, at {at}, and not again: rehearsal, causality, isolation" in said
    assert "s after the start:" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    "other", ["algo.lora_r=8", "model.dtype=float32", "data.max_seq_len=60", "launch.reuse_measurements=false"]
)
def test_what_a_measurement_depends_on_makes_another_kind(train, other):
    train("algo.max_steps=1")
    assert train("algo.max_steps=1", other)[2] == ["causality", "isolation"]
    assert train("algo.max_steps=1")[2] == []


KIND = {"world": 1, "weights": {"weights": "abc"}}


@pytest.fixture
def entry(tmp_path):
    """Opens the entry of a kind, of a run that needs nothing but a folder."""
    setup = SimpleNamespace(run=Run(tmp_path), cfg=SimpleNamespace(resume=None))

    def opened(kind=KIND):
        return MeasuredBefore(setup, kind)

    first = opened()
    first.answers.given = {"causality.0": 0.0, "isolation.0": [True, "they do not see each other"]}
    first.keep()
    return opened


@pytest.mark.parametrize("damage", ["cut", "changed", "foreign", "unreadable", "huge", "list"])
def test_an_entry_that_is_damaged_or_of_another_kind_is_ignored_with_a_line(entry, capsys, damage):
    (file,) = answers.entries_folder().glob("*.json")
    whole = json.loads(file.read_text())
    assert entry().answers.known == whole["answers"]
    assert capsys.readouterr().out == ""
    if damage == "cut":
        file.write_text(file.read_text()[:-40])
    elif damage == "changed":
        file.write_text(json.dumps(whole | {"answers": {"causality.0": 0.0, "isolation.0": [False, "no"]}}))
    elif damage == "foreign":
        file.write_text(json.dumps(whole | {"kind": KIND | {"world": 2}}))
    elif damage == "huge":
        file.write_text(json.dumps(whole) + " " * measured_before.MAX_BYTES)
    elif damage == "list":
        file.write_text("[[[]]]")
    else:
        file.write_bytes(b"\xff" * 100)
    anew = entry()
    assert anew.answers.known == {}
    assert f"{file} is ignored, and all is measured anew" in capsys.readouterr().out
    anew.answers.given = whole["answers"]
    anew.keep()
    assert entry().answers.known == whole["answers"]


def test_each_kind_has_its_entry_the_oldest_go_and_one_without_a_kind_keeps_nothing(entry, monkeypatch):
    monkeypatch.setattr(measured_before, "MAX_ENTRIES", 2)
    for number in range(2, 5):
        other = entry(KIND | {"world": number})
        assert other.answers.known == {}
        other.answers.given = {"causality.0": float(number)}
        other.keep()
        time.sleep(0.01)
    assert [entry(KIND | {"world": number}).answers.known.get("causality.0") for number in range(1, 5)] == [
        None,
        None,
        3.0,
        4.0,
    ]
    none = entry({})
    none.answers.given = {"causality.0": 9.0}
    none.keep()
    assert len(list(answers.entries_folder().glob("*.json"))) == 2


def test_memory_is_measured_anew_if_another_amount_is_free():
    memory, passes = PassMemory(Line(3.0, 5.0), Line(1.0, 2.0), 7), []

    def measure() -> PassMemory:
        passes.append(1)
        return memory

    with answers.open_answers(answers.Answers({})) as first:
        assert measured_memory(1000.0, measure) == (1000.0, memory)
    known = json.loads(json.dumps(first.given))
    for room, reused in ((1000.0, True), (995.0, True), (1040.0, True), (980.0, False), (1100.0, False)):
        passes.clear()
        with answers.open_answers(answers.Answers(known)) as later:
            # The layout follows from the room of the measurement: else it would round otherwise.
            assert measured_memory(room, measure) == (1000.0 if reused else room, memory)
        assert (not passes, later.reused == ["memory"]) == (reused, reused)
        assert later.given["memory.0"]["room"] == (1000.0 if reused else room)


@pytest.mark.slow
def test_the_layout_of_a_run_in_little_memory_is_taken_over(train):
    def in_memory(*more):
        memory = SimulatedMemory(limit=8e6)
        with memory.on():
            losses, plan, _ = train("model.dtype=float32", *more)
        return losses, plan, memory.num_allocations

    losses, plan, allocations = in_memory()
    again, reused, fewer = in_memory()
    assert again == losses
    assert "memory" in reused["measured_before"]["what"]
    assert fewer < allocations
    layout = ("max_tokens_per_gpu", "layers_recomputed", "activation_offload", "activation_offload_because", "packed")
    assert [reused[name] for name in layout] == [plan[name] for name in layout]
    assert plan["layers_recomputed"] > 0
    anew, other, _ = in_memory("launch.reuse_measurements=false")
    assert (anew, other.get("measured_before")) == (losses, None)


@pytest.mark.slow
def test_a_layout_that_runs_out_of_memory_is_not_reused(train, monkeypatch):
    train()

    def limited(model, batch):
        if batch.input_ids.numel() > 300 and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("no room")
        return causal_lm_loss(model, batch)

    limited.__module__, limited.__qualname__ = causal_lm_loss.__module__, causal_lm_loss.__qualname__
    real = hub_lora_sft.recipe.Recipe
    with monkeypatch.context() as patched:
        patched.setattr(hub_lora_sft.recipe, "Recipe", lambda **parts: real(loss=limited, **parts))
        _, plan, passes = train()
    assert passes == []
    assert plan["max_tokens_per_gpu"] < 1024 or plan["layers_recomputed"]
    assert not list(answers.entries_folder().glob("*.json"))
    assert train()[2] == ["causality", "isolation"]
