"""Measuring a model that is being trained: as often as one likes, with its adapter on or off, and it is as before."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from hub import compose
from hub.data.prepare import prepare
from hub.data.samples.sample import Group, Sample
from hub.data.tokens.tokenizer import load_tokenizer
from hub.models.patches import patches_of
from hub.tasks.evaluate.measure import measure, result_rows
from hub.tasks.evaluate.plan import prepare_plan
from hub.tasks.evaluate.sets import LEARNT, Encoding, make_set
from hub.tasks.loading import Loaded
from hub.testing import tiny_model_path, write_chats
from hub.train.kernels.head import FusedHead


def test_a_model_in_training_is_measured_and_is_as_before(tmp_path):
    chats = f"data.path={write_chats(tmp_path / 'chats.jsonl', num_rows=30)}"
    words = ("algo=lora_sft", "model=tiny", chats, "data.eval_fraction=0.2")
    cfg = compose(*words, "evaluate.metrics=[f1]", "evaluate.max_new_tokens=3")
    folder = tiny_model_path("llama")
    tokenizer = load_tokenizer(cfg, folder)
    units = prepare(cfg, tokenizer, None).evaluation
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model = get_peft_model(
        base, LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False, lora_dropout=0.5)
    )
    model.train()
    head = patches_of(model).apply(FusedHead(base.lm_head))
    loaded = Loaded("in training", model, tokenizer, torch.device("cpu"), torch.bfloat16, None, folder, has_adapter=True)
    plan = prepare_plan(cfg, Encoding(tokenizer, None, None, print), cfg, units)
    first = measure(loaded, plan)
    again = measure(loaded, plan)
    with loaded.without_adapter():
        before = measure(loaded, plan)
    assert model.training
    assert patches_of(model).applied == [head]
    assert base.config._attn_implementation == "sdpa"
    by_name = {figure.metric: figure for figure in first.figures}
    assert set(by_name) == {"loss", "perplexity", "f1"}
    for one, other in zip(first.figures, again.figures, strict=True):
        np.testing.assert_array_equal(one.sums, other.sums)

    # The same loss by plain calls, without dropout.
    model.eval()
    total = count = 0
    for unit in units:
        ids = torch.from_numpy(unit.input_ids.astype(np.int64))[None]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids).logits[0].float()
        losses = -torch.log_softmax(logits[:-1], -1).gather(1, ids[0, 1:, None])[:, 0]
        mask = torch.from_numpy(unit.loss_mask[1:])
        total, count = total + float(losses[mask].sum()), count + int(mask.sum())
    assert by_name["loss"].value == pytest.approx(total / count, rel=2e-3)
    row = next(row for row in result_rows(first, before, 0) if row["metric"] == "loss")
    assert row["difference"]["value"] == pytest.approx(row["values"][0]["value"] - row["values"][1]["value"])
    assert abs(row["difference"]["value"]) > 1e-3


def test_of_preferences_the_answers_that_are_to_become_likelier_are_measured():
    def unit(line, *roles):
        mask = np.array([False, True])
        return Group(
            tuple(Sample(np.array([1, 2], np.int32), mask, f"p.jsonl:{line}", role) for role in roles), f"p.jsonl:{line}"
        )

    units = [unit(1, "chosen", "rejected"), unit(2, "desirable"), unit(3, "undesirable"), unit(4, "rejected", "chosen")]
    encoding = Encoding(load_tokenizer(compose("model=tiny"), tiny_model_path("llama")), None, None, print)
    found = make_set("held-out", LEARNT, compose("model=tiny"), encoding, None, False, units)
    assert [(sample.where, sample.role) for sample in found.samples] == [
        ("p.jsonl:1", "chosen"), ("p.jsonl:2", "desirable"), ("p.jsonl:4", "chosen"),
    ]  # fmt: skip
