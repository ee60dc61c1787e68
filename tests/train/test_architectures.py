"""Kinds of adapters, target groups and types of weights: what is trained, and what is saved."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hub import compose
from hub.compose import runfile
from hub.data.prepare import prepare
from hub.launch.launcher import launch
from hub.testing import tiny_model_path


def train(tmp_path, *overrides: str):
    cfg = compose("data=tiny", "launch=inline", f"output_dir={tmp_path}", "algo.max_steps=2", *overrides)
    result = launch(cfg)
    return runfile.read(result.run_path / "run.yaml"), result


def loss_of(model, cfg, tokenizer) -> float:
    """The held-out loss, without any of the hub's loop: one sample at a time."""
    total, count = 0.0, 0
    for sample in prepare(cfg, tokenizer, None).evaluation:
        ids = torch.from_numpy(sample.input_ids.astype(np.int64))[None]
        labels = torch.where(torch.from_numpy(sample.loss_mask), ids[0], -100)[1:]
        with torch.no_grad():
            total += F.cross_entropy(model(input_ids=ids).logits[0, :-1].float(), labels, reduction="sum").item()
        count += int((labels != -100).sum())
    return total / count


@pytest.mark.parametrize(
    "options",
    ["algo.use_dora=true", "algo.use_rslora=true", "algo.init=gaussian", "algo.init=orthogonal",
     "algo.init=pissa algo.use_rslora=true", "algo.init=olora algo.bias=all", "algo.init=pissa model.path=tiny:gpt2",
     "algo.target_modules=attention", "algo.target_modules=[q_proj,down_proj]", "algo.bias=all"],
)  # fmt: skip
def test_a_kind_of_adapter_loads_as_it_was_trained(tmp_path, options):
    family = "qwen2" if "bias" in options else "llama"
    given = ["algo=lora_sft", f"model.path=tiny:{family}", "model.dtype=float32", "algo.learning_rate=1e-2"]
    cfg, result = train(tmp_path, *given, *options.split())
    base = AutoModelForCausalLM.from_pretrained(result.base_model_path, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, result.model_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(result.model_path)
    assert loss_of(model, cfg, tokenizer) == pytest.approx(result.eval_loss, abs=1e-4)
    assert abs(result.eval_loss - result.eval_loss_before) > 1e-3
    # Loading it draws nothing and leaves the base as it is, so it can also be merged, and used beside other adapters.
    assert json.loads((result.model_path / "adapter_config.json").read_text())["init_lora_weights"] is True
    with model.disable_adapter():
        if "bias" not in options:
            assert loss_of(model, cfg, tokenizer) == pytest.approx(result.eval_loss_before, abs=1e-4)
    assert loss_of(model.merge_and_unload(), cfg, tokenizer) == pytest.approx(result.eval_loss, abs=1e-4)


def test_target_groups_take_the_layers_that_their_names_say(tmp_path):
    for group, expected in (
        ("attention", ["k_proj", "o_proj", "q_proj", "v_proj"]),
        ("mlp", ["down_proj", "gate_proj", "up_proj"]),
    ):
        _, result = train(tmp_path, "algo=lora_sft", "model=tiny", f"algo.target_modules={group}")
        assert json.loads((result.run_path / "plan.json").read_text())["target_modules"] == expected


def test_a_learning_rate_of_one_millionth_moves_a_bfloat16_model(tmp_path):
    _, result = train(
        tmp_path, "algo=sft", "model=tiny", "model.dtype=bfloat16", "algo.learning_rate=1e-6", "algo.max_steps=8",
        "algo.lr_scheduler=constant", "algo.warmup_steps=0", "algo.effective_batch_size=8", "algo.save_every_steps=7",
    )  # fmt: skip
    before = load_file(tiny_model_path("llama") / "model.safetensors")
    saved = load_file(result.model_path / "model.safetensors")
    kept = load_file(result.run_path / "checkpoints/step-00000007/trainable.safetensors")
    assert all(tensor.dtype == torch.bfloat16 for tensor in saved.values())
    for name, start in before.items():
        assert kept[name].dtype == torch.float32
        # Adam moves a weight by about the learning rate a step; in bfloat16 nearly all of that would round away.
        moved = (kept[name] - start).abs().max()
        assert 5e-6 < moved < 8e-6, name
    changed = sum(int((saved[name] != start.bfloat16()).sum()) for name, start in before.items())
    assert changed > 100


def test_frozen_weights_stay_bit_equal_under_lora(tmp_path):
    _, result = train(tmp_path, "algo=lora_sft", "model=tiny", "algo.save_every_steps=1")
    kept = load_file(result.run_path / "checkpoints/step-00000001/trainable.safetensors")
    assert kept
    assert all("lora_" in name for name in kept)
    assert all(tensor.dtype == torch.float32 for tensor in kept.values())
    assert json.loads((result.run_path / "plan.json").read_text())["trainable_parameters"] == sum(
        tensor.numel() for tensor in kept.values()
    )
