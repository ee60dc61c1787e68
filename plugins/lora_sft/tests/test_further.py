"""A second stage: an adapter is trained further from its own numbers."""

import json

import pytest
import torch
from hub_lora_sft.config import LoraSftConfig
from hub_lora_sft.further import train_further
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, LlamaForCausalLM
from zoo.zoo import zoo_model

from hub import ConfigError, ModelError, Run, compose
from hub.launch.launcher import launch
from hub.launch.preflight import prepare
from hub.testing import tiny_model_path

OPTIONS = ["algo=lora_sft", "launch=inline", "data=tiny", "model.dtype=float32", "algo.learning_rate=1e-2"]
OF_FIRST = ["model=tiny", "algo.lora_r=4", "algo.lora_alpha=12", "algo.target_modules=[q_proj,up_proj]", "algo.use_rslora=true"]


def test_an_adapter_is_trained_further_with_its_rank_scale_and_layers(tmp_path):
    options = [*OPTIONS, f"output_dir={tmp_path}", "algo.max_steps=2"]
    first = launch(compose(*options, *OF_FIRST, "run_name=first"))
    second = launch(compose(*options, f"model.path={tmp_path}/first"))
    assert second.eval_loss_before == first.eval_loss > second.eval_loss
    before, after = (json.loads((one.model_path / "adapter_config.json").read_text()) for one in (first, second))
    same = ("r", "lora_alpha", "use_rslora", "target_modules", "base_model_name_or_path")
    assert {name: before[name] for name in same} == {name: after[name] for name in same}
    shapes = [
        {name: tensor.shape for name, tensor in load_file(one.model_path / "adapter_model.safetensors").items()}
        for one in (first, second)
    ]
    assert shapes[0] == shapes[1]
    plan = json.loads((second.run_path / "plan.json").read_text())
    assert (plan["adapter"], plan["adapter_because"][:10]) == (str(first.model_path), "model.path")
    with pytest.raises(ConfigError, match=r"so algo\.lora_r=8 \(it has 4\), algo\.init=pissa can't be set\. Leave that out"):
        prepare(compose(*options, f"model.path={first.model_path}", "algo.lora_r=8", "algo.init=pissa"))


def _base(dtype: torch.dtype) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(tiny_model_path("llama"), dtype=dtype)


def test_what_is_trained_further_is_the_stored_adapter_in_float32_on_an_unchanged_base(tmp_path, recwarn):
    config = {"inference_mode": True, "init_lora_weights": "pissa", "r": 2, "lora_alpha": 6}
    config |= {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["norm"]}
    config |= {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "elsewhere"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    base, made = (_base(torch.bfloat16) for _ in range(2))
    targets = LoraConfig(r=2, target_modules=config["target_modules"], modules_to_save=["norm"], task_type="CAUSAL_LM")
    shapes = get_peft_model_state_dict(get_peft_model(made, targets), save_embedding_layers=False)
    stored = {name: torch.randn(tensor.shape) for name, tensor in shapes.items()}
    save_file(stored, tmp_path / "adapter_model.safetensors")
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    run = Run.create(tmp_path / "runs")
    adapted = train_further(LoraSftConfig(lora_dropout=0.25), base, run, tmp_path)
    now = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    assert {name: tensor.dtype for name, tensor in now.items()} == dict.fromkeys(stored, torch.float32)
    assert all(torch.equal(now[name], tensor) for name, tensor in stored.items())
    states = adapted.get_base_model().state_dict().items()
    after = {name.replace(".base_layer", "").replace(".original_module", ""): weight for name, weight in states}
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    trained = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    assert len(trained) == len(stored)
    assert all(".lora_" in name or ".modules_to_save." in name for name in trained)
    assert {module.p for module in adapted.modules() if isinstance(module, torch.nn.Dropout)} == {0.25}
    assert not [warning for warning in recwarn if "base" in str(warning.message)]
    assert (run.plan()["target_modules"], run.plan()["num_adapters"], run.plan()["adapter"]) == (
        ["embed_tokens", "q_proj"], 3, str(tmp_path)
    )  # fmt: skip
    save_file(dict(list(stored.items())[1:]), tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"this adapter does not fit its base: "):
        train_further(LoraSftConfig(), _base(torch.float32), run, tmp_path)


def test_an_adapter_that_unties_the_output_layer_is_not_trained_further(tmp_path):
    config = {"modules_to_save": ["wte"], "target_modules": ["c_attn"], "peft_type": "LORA", "task_type": "CAUSAL_LM"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    base = AutoModelForCausalLM.from_pretrained(tiny_model_path("gpt2"))
    with pytest.raises(ConfigError, match=r"PEFT can't train the tied embeddings of this model"):
        train_further(LoraSftConfig(), base, Run.create(tmp_path / "runs"), tmp_path)


def test_adapters_that_no_text_passes_through_are_not_trained_further(tmp_path):
    config = {"target_modules": ["q_proj"], "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    base, made = (AutoModelForImageTextToText.from_pretrained(zoo_model("gemma3")) for _ in range(2))
    save_file(get_peft_model_state_dict(get_peft_model(made, LoraConfig(**config))), tmp_path / "adapter_model.safetensors")
    adapted = train_further(LoraSftConfig(), base, Run.create(tmp_path / "runs"), tmp_path)
    trained = {"vision" in name: weight.requires_grad for name, weight in adapted.named_parameters() if ".lora_" in name}
    assert trained == {True: False, False: True}
