"""The trained model is the base with what the options say, added here by hand in float64."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hub import compose
from hub.launch.launcher import launch
from hub.testing import tiny_model_path
from hub.train import loop, step

OPTIONS = ["algo=lora_sft", "model.path=tiny:qwen2", "data=tiny", "launch=inline", "model.dtype=float32", "algo.max_steps=3",
           "algo.effective_batch_size=2", "algo.learning_rate=1e-2", "data.eval_fraction=0.05", "algo.lora_r=4",
           "algo.lora_alpha=6", "algo.lora_dropout=0.25", "algo.use_rslora=true", "algo.init=gaussian",
           "algo.bias=all"]  # fmt: skip


def test_scale_dropout_biases_and_first_numbers_of_the_adapters_are_those_of_the_options(tmp_path, monkeypatch):
    held = []
    monkeypatch.setattr(loop, "evaluate", lambda *given: (held.append(given[2]), step.evaluate(*given))[1])
    result = launch(compose(*OPTIONS, f"output_dir={tmp_path}"))
    config = json.loads((result.model_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_dropout"], config["bias"]) == (4, 0.25, "all")
    saved = load_file(result.model_path / "adapter_model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path("qwen2"), dtype=torch.float64)
    weights, factors, num_biases = dict(model.named_parameters()), [], 0
    for name, tensor in saved.items():
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
        if plain.endswith("lora_A.weight"):
            factors.append(tensor.flatten())
            other = saved[name.replace("lora_A", "lora_B")].double()
            # alpha / sqrt(r), arXiv 2312.03732
            weights[plain.replace("lora_A.", "")].data += 6 / 4**0.5 * other @ tensor.double()
        elif plain.endswith("bias"):
            num_biases += 1
            weights[plain].data = tensor.double()
            assert tensor.any()  # they begin as zeros
    assert (len(factors), num_biases) == (14, 6)
    # Normal with a deviation of 1 / r, where PEFT's default is uniform within 1 / 8.
    assert float(torch.cat(factors).std()) == pytest.approx(0.25, rel=0.05)
    total, count = 0.0, 0
    for unit in held[0]:
        ids = torch.from_numpy(unit.input_ids.astype(np.int64))
        with torch.no_grad():
            logs = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
        chosen = torch.from_numpy(unit.loss_mask[1:])
        total, count = total - float(logs[chosen].sum()), count + int(chosen.sum())
    assert result.eval_loss == pytest.approx(total / count, rel=1e-5)
    assert result.eval_loss < result.eval_loss_before - 0.1
