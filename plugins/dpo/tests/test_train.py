"""Whole runs: the start is the reference, preferences are learned, a resumed run is the same run, and mistakes end a run."""

import json
import math

import hub_dpo.references
import pytest
import torch
from hub_dpo.references import References
from safetensors.torch import load_file, save_file

import hub
from hub.testing import tiny_model

LN_2 = math.log(2)


@pytest.mark.parametrize(
    ("algo", "options"),
    [
        ("lora_dpo", {"eval_fraction": 0.2, "lora_dropout": 0.1, "bias": "all", "modules_to_save": ["norm"]}),
        ("dpo", {}),
        (
            "osft_dpo",
            {"learning_rate": 1e-2, "subspace": "activations", "protect_data": ["tiny:chats"], "save_protection": True},
        ),
        pytest.param("lora_dpo", {"init": "pissa"}, marks=pytest.mark.slow),
    ],
)
def test_the_first_step_finds_the_model_at_its_reference_and_pairs_are_learned(train, algo, options):
    result = train(algo, **options)
    first, last = result.metrics[0], result.metrics[-1]
    # pissa takes a part of the weights out and adds it again, which rounds. All others are bit for bit at the start.
    close = 1e-5 if "init" in options else 1e-15
    assert first["loss"] == pytest.approx(LN_2, abs=close)
    assert (first["margin"], first["reward_chosen"], first["kl_per_token"]) == pytest.approx((0, 0, 0), abs=close)
    assert last["kl_per_token"] > 0
    assert last["margin"] > 0.05
    assert last["loss"] < LN_2 - 0.02
    assert last["accuracy"] > 0.8
    if "eval_fraction" in options:
        assert first["eval_loss_before"] == pytest.approx(LN_2, abs=1e-15)
        assert first["eval_accuracy_before"] == 0.5
        assert last["eval_accuracy"] == 1.0
    plan = json.loads((result.run_path / "plan.json").read_text())
    assert plan["references_checked"] >= 8
    assert plan["references_moved"] < 1e-6


def test_references_come_from_the_cache_and_a_resumed_run_has_those_that_it_began_with(train, pairs, monkeypatch, capsys):
    whole = train(max_steps=5, save_every_steps=2, keep_checkpoints=3, run_name="whole")
    computed = []
    monkeypatch.setattr(References, "_compute", lambda self, passes, chunks: computed.append(chunks) or {})
    again = train(max_steps=5, learning_rate=5e-3, run_name="again")
    assert "log-probabilities of 48 samples (from the cache)" in capsys.readouterr().out
    assert again.metrics[0]["loss"] == whole.metrics[0]["loss"]
    for file in (hub_dpo.references.cache_dir() / "references").glob("*/*.npz"):
        file.unlink()
    losses, trained = [line["loss"] for line in whole.metrics], load_file(whole.model_path / "adapter_model.safetensors")
    (whole.run_path / "result.json").unlink()  # as if it had been killed behind its second step
    resumed = hub.run(resume=str(whole.run_path / "checkpoints" / "step-00000002"), mode="inline")
    assert "from the run folder" in capsys.readouterr().out
    assert not computed
    assert [line["loss"] for line in resumed.metrics] == losses
    found = load_file(resumed.model_path / "adapter_model.safetensors")
    assert all(torch.equal(trained[name], found[name]) for name in trained)


def test_an_adapter_that_is_trained_further_is_the_reference_with_what_it_holds_now(train, pairs, tmp_path):
    shared = {"data": pairs, "mode": "inline", "dtype": "float32", "max_steps": 1, "effective_batch_size": 8}
    adapter = train(max_steps=2, learning_rate=0.1).model_path
    first = hub.run("lora_dpo", model=adapter, output_dir=tmp_path / "runs", **shared)
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({name: 2 * value for name, value in weights.items()}, adapter / "adapter_model.safetensors", {"format": "pt"})
    second = hub.run("lora_dpo", model=adapter, output_dir=tmp_path / "runs", **shared)
    assert first.metrics[0]["loss"] == second.metrics[0]["loss"] == pytest.approx(LN_2, abs=1e-15)
    assert first.metrics[0]["logp_chosen"] != second.metrics[0]["logp_chosen"]


def test_another_model_may_be_the_reference_but_not_one_with_other_tokens(train, tmp_path):
    other = tiny_model(tmp_path / "other", "llama", seed=1)
    result = train(reference=str(other), max_steps=1)
    assert result.metrics[0]["loss"] != pytest.approx(LN_2, abs=1e-4)
    added = tmp_path / "other" / "tokenizer.json"
    values = json.loads(added.read_text())
    values["added_tokens"].append(values["added_tokens"][-1] | {"id": len(values["model"]["vocab"]) + 9, "content": "<new>"})
    added.write_text(json.dumps(values))
    with pytest.raises(hub.ConfigError, match=r"^algo\.reference=.*other has another vocabulary: .*Type algo\.reference=base"):
        train(reference=str(other), max_steps=1)


def test_references_of_a_model_with_its_adapter_on_end_the_run_at_its_first_step(train, monkeypatch):
    compute = References._compute

    def with_adapter_on(self, passes, chunks):
        factors = [each for name, each in self._recipe.model.named_parameters() if "lora_B" in name]
        with torch.no_grad():
            for each in factors:
                each.fill_(0.05)
            try:
                return compute(self, passes, chunks)
            finally:
                for each in factors:
                    each.zero_()

    monkeypatch.setattr(References, "_compute", with_adapter_on)
    with pytest.raises(
        hub.ModelError, match="before the first step the model must have the log-probabilities of its reference"
    ):
        train(max_steps=2)


def test_a_frozen_weight_that_moves_while_training_is_found_at_the_end(train, monkeypatch):
    check = References.check

    def moved(self, passes):
        with torch.no_grad():
            next(each for each in self._recipe.model.parameters() if not each.requires_grad).add_(0.05)
        check(self, passes)

    monkeypatch.setattr(References, "check", moved)
    with pytest.raises(hub.ModelError, match=r"computed again after training, its reference is off by .* a token"):
        train(max_steps=2)


def test_judged_answers_and_losses_without_a_reference_train(train, tmp_path):
    rows = [
        {"prompt": f"what is {n} + 1?", "completion": f"it is {n + 1}" if n % 2 else "I do not know", "label": bool(n % 2)}
        for n in range(24)
    ]
    (tmp_path / "judged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged = train(loss="kto", data=tmp_path / "judged.jsonl", eval_fraction=0.2)
    assert judged.metrics[0]["loss"] == pytest.approx(0.5, abs=1e-6)
    assert judged.metrics[-1]["eval_margin"] > 0.1
    free = train(loss="simpo")
    assert not (free.run_path / "references.npz").exists()
    assert free.metrics[-1]["margin"] > free.metrics[0]["margin"]


@pytest.mark.slow
def test_two_processes_train_as_one_does(train):
    options = {"max_steps": 4, "save_every_steps": 2, "learning_rate": 1e-3, "mode": "process"}
    alone, two = train(**options, nproc=1), train(**options, nproc=2, max_tokens_per_gpu=80)
    assert [line["loss"] for line in two.metrics] == pytest.approx([line["loss"] for line in alone.metrics], abs=1e-5)
    # The references are those of one process, from the cache: other micro-batches round differently.
    assert two.metrics[0]["loss"] == pytest.approx(LN_2, abs=1e-6)
    assert two.metrics[-1]["margin"] == pytest.approx(alone.metrics[-1]["margin"], rel=1e-3)
