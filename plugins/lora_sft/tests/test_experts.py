"""Experts that train: what is saved, added here by hand in float64, is what was trained, what PEFT loads and what is merged."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hub_lora_sft.parameters import (
    GROUPED,
    IN_8_BITS,
    IN_NF4,
    OF_TWO_DIMENSIONS,
    TAKEN,
    say_how_experts_are_kept,
    targets_of,
)
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from zoo.zoo import zoo_model

from hub import compose
from hub.config.schema import ModelConfig
from hub.launch.launcher import launch
from hub.models.load import load_causal_lm
from hub.models.merging import merge
from hub.models.merging.quantized import as_trained
from hub.train import loop, step

OPTIONS = ["algo=lora_sft", "data=tiny", "launch=inline", "model.dtype=float32", "algo.max_steps=2",
           "algo.effective_batch_size=2", "algo.learning_rate=2e-2", "data.eval_fraction=0.05", "algo.lora_r=3",
           "algo.lora_alpha=5", "algo.use_rslora=true"]  # fmt: skip
SCALE = 5 / 3**0.5
"""alpha / sqrt(r), arXiv 2312.03732."""


def with_adapter_by_hand(family, saved, num_experts=4, in_nf4=False):
    model = AutoModelForCausalLM.from_pretrained(zoo_model(family), dtype=torch.float64, experts_implementation="eager").eval()
    weights = dict(model.named_parameters())
    for name, weight in weights.items() if in_nf4 else ():
        matrices = weight.ndim > 1 and name.endswith("_proj.weight" if weight.ndim == 2 else "_proj")
        if matrices and not name.endswith("gate.weight"):
            weight.data = as_trained(weight.data.float(), "nf4", torch.float32).double()
    for name, a in saved.items():
        if ".lora_A." not in name:
            continue
        b = saved[name.replace("lora_A", "lora_B")].double()
        plain = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        if ".experts" not in plain:
            weights[f"{plain}.weight"].data += SCALE * b @ a.double()
            continue
        # PEFT wraps the tensors in their order: gate and up are inside, down is outside.
        inner = plain.endswith(".base_layer")
        weight = weights[plain.removesuffix(".base_layer") + (".gate_up_proj" if inner else ".down_proj")]
        for expert in range(num_experts):
            delta = SCALE * b[:, expert::num_experts] @ a[3 * expert : 3 * expert + 3].double()
            weight.data[expert] += delta.T if family == "gpt_oss" else delta
    return model


def loss_by_hand(model, units):
    total, count = 0.0, 0
    for unit in units:
        ids = torch.from_numpy(unit.input_ids.astype(np.int64))
        with torch.no_grad():
            logs = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
        chosen = torch.from_numpy(unit.loss_mask[1:])
        total, count = total - float(logs[chosen].sum()), count + int(chosen.sum())
    return total / count


@pytest.mark.parametrize(
    "family",
    ["deepseek_v2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt_oss", "mixtral", "qwen3_moe"))],
)
def test_what_is_saved_is_what_trained_and_loads_and_merges_so(tmp_path, monkeypatch, family):
    held = []
    monkeypatch.setattr(loop, "evaluate", lambda *given: (held.append(given[2]), step.evaluate(*given))[1])
    result = launch(compose(*OPTIONS, f"model.path={zoo_model(family)}", f"output_dir={tmp_path}/run"))
    plan = json.loads((result.run_path / "plan.json").read_text())
    assert (plan["expert_adapters"], plan["expert_adapters_because"]) == ("grouped", GROUPED)
    saved = load_file(result.model_path / "adapter_model.safetensors")
    experts = {name: tensor for name, tensor in saved.items() if ".experts." in name}
    assert len(experts) == (4 if family == "deepseek_v2" else 8)
    for name, tensor in experts.items():  # each of each expert has learnt
        each = tensor.reshape(4, -1) if ".lora_A." in name else tensor.reshape(len(tensor), 3, 4).permute(2, 0, 1).flatten(1)
        assert each.any(dim=1).all()

    model = with_adapter_by_hand(family, saved)
    assert result.eval_loss == pytest.approx(loss_by_hand(model, held[0]), rel=1e-5)
    assert result.eval_loss < result.eval_loss_before - 0.01

    ids = torch.arange(40, 80)[None]
    base = AutoModelForCausalLM.from_pretrained(zoo_model(family), dtype=torch.float32)
    made = merge(
        zoo_model(family), result.model_path, tmp_path / "merged", None, print, model=ModelConfig(path=str(zoo_model(family)))
    )
    assert made.by_shard
    with torch.no_grad():
        before, expected = base(ids).logits, model(ids).logits
        loaded = PeftModel.from_pretrained(base, result.model_path).eval()(input_ids=ids).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()(ids).logits
    change = float((expected - before).abs().max())
    assert change > 0.05
    assert (loaded - expected).abs().max() < 1e-3 * change
    assert (merged - expected).abs().max() < 1e-3 * change


@pytest.mark.parametrize(
    ("family", "asked", "layers", "parameters"),
    [
        ("mixtral", "mlp", set(), {"down_proj", "gate_up_proj"}),
        ("mixtral", "attention", {"q_proj", "k_proj", "v_proj", "o_proj"}, set()),
        ("mixtral", ["experts", "q_proj"], {"q_proj"}, {"down_proj", "gate_up_proj"}),
        ("mixtral", ["down_proj"], set(), {"down_proj"}),
        ("llama4_text", ["router"], {"router"}, set()),  # a router by its name only
        ("deepseek_v2", ["down_proj"], set(), {"down_proj", "weight"}),
        ("dbrx", "auto", {"Wqkv", "out_proj"}, set()),  # tensors of two dimensions, and a linear router
    ],
)
def test_experts_and_routers_are_targets_by_group_and_by_name(family, asked, layers, parameters):
    model = AutoModelForCausalLM.from_pretrained(zoo_model(family))
    targets = targets_of(asked, model, {})
    assert {name.rpartition(".")[2] for name in targets.layers} == layers
    assert {name.rpartition(".")[2] for name in targets.parameters} == parameters


@pytest.mark.parametrize("family", ["qwen3_moe", pytest.param("gpt_oss", marks=pytest.mark.slow)])
def test_in_4_bits_experts_train_beside_what_was_quantized_and_merge_over_it(tmp_path, monkeypatch, family):
    pytest.importorskip("bitsandbytes")
    held = []
    monkeypatch.setattr(loop, "evaluate", lambda *given: (held.append(given[2]), step.evaluate(*given))[1])
    base = zoo_model(family)
    result = launch(compose(*OPTIONS, "algo.load_in_4bit=true", f"model.path={base}", f"output_dir={tmp_path}/run"))
    plan = json.loads((result.run_path / "plan.json").read_text())
    assert (plan["experts_kept_in"], plan["experts_kept_in_because"], plan["expert_adapters"]) == ("nf4", IN_NF4, "grouped")

    saved = load_file(result.model_path / "adapter_model.safetensors")
    model = with_adapter_by_hand(family, saved, in_nf4=True)
    assert result.eval_loss == pytest.approx(loss_by_hand(model, held[0]), rel=1e-5)
    cfg, ids = ModelConfig(path=str(base), dtype="float32"), torch.arange(40, 80)[None]
    merge(base, result.model_path, tmp_path / "merged", None, print, model=cfg, dequantized="nf4")
    merge(base, result.model_path, tmp_path / "over_base", None, print, model=cfg)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        expected, of_base = model(ids).logits, with_adapter_by_hand(family, saved)(ids).logits
        over_base, merged = (
            AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32).eval()(ids).logits
            for name in ("over_base", "merged")
        )
        loaded = PeftModel.from_pretrained(plain, result.model_path).eval()(input_ids=ids).logits
    change = float((expected - of_base).abs().max())
    assert change > 0.05
    assert (merged - expected).abs().max() < 1e-3 * change
    assert (over_base - of_base).abs().max() < 1e-3 * change
    assert (loaded - of_base).abs().max() < 1e-3 * change


@pytest.mark.slow
def test_in_4_bits_layers_whose_names_peft_takes_are_left_out(tmp_path, capsys):
    pytest.importorskip("bitsandbytes")
    quantized = ["algo.load_in_4bit=true", "data.eval_fraction=0", "algo.max_steps=1", f"model.path={zoo_model('deepseek_v2')}"]
    result = launch(compose(*OPTIONS, *quantized, "model.dtype=bfloat16", f"output_dir={tmp_path}"))
    said = capsys.readouterr().out
    assert f"1 x shared_experts.gate_proj, 2 others ({TAKEN})" in said
    plan = json.loads((result.run_path / "plan.json").read_text())
    assert (plan["experts_kept_in"], plan["expert_adapters"]) == ("nf4", "grouped")
    assert sorted(plan["target_parameters"]) == ["down_proj", "gate_up_proj"]


def test_what_stays_in_full_is_said(tmp_path):
    pytest.importorskip("bitsandbytes")
    for family, bits, number, because in (("mixtral", 8, "196,608", IN_8_BITS), ("dbrx", 4, "98,304", OF_TWO_DIMENSIONS)):
        path, said, plan = zoo_model(family), [], {}
        how = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
        model = load_causal_lm(ModelConfig(path=str(path)), path, "cpu", torch.bfloat16, how)
        say_how_experts_are_kept(model, SimpleNamespace(say=said.append, write_plan=plan.update))
        assert said == [f"the experts' {number} weights stay in bfloat16: {because}"]
        assert plan == {"experts_kept_in": "bfloat16", "experts_kept_in_because": because}
