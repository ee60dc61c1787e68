"""Which layers get an adapter: with default options on families where not all can, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from hub_lora_sft.targets import REFUSED, target_names
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from zoo.zoo import TEXT, zoo_model

from hub import ConfigError, Result, compose
from hub.launch.launcher import launch
from hub.testing import tiny_model_path
from hub.train.setup.layers import NOT_A_PRODUCT, READ, SHARED

OPTIONS = ("algo=lora_sft", "data=tiny", "launch=inline", "model.dtype=float32", "algo.learning_rate=1e-2", "algo.max_steps=2",
           "algo.effective_batch_size=2", "data.eval_fraction=0")  # fmt: skip


def folder_of(family: str) -> Path:
    return zoo_model(family) if family in TEXT else tiny_model_path(family)


def run(tmp_path: Path, family: str, *overrides: str) -> Result:
    return launch(compose(*OPTIONS, f"model.path={folder_of(family)}", f"output_dir={tmp_path}", *overrides))


EACH, FUSED = "adapters for each expert in", "fused tensors"


@pytest.mark.parametrize(
    ("family", "left_out", "line", "num_adapters"),
    [
        ("mamba", {"dt_proj": READ, "out_proj": REFUSED}, None, 4),
        ("phimoe", {"router": NOT_A_PRODUCT}, f"{EACH} 4 of the experts' 4 {FUSED}: 65,536 parameters", 12),
        ("zamba", {"gate_proj": SHARED, "q_proj": SHARED}, None, 14),
        ("deepseek_v2", {}, f"{EACH} 2 of the experts' 2 {FUSED}: 14,336 parameters", 16),
    ],
)
def test_with_default_options_the_adapter_loads_and_merges_to_the_trained_model(
    tmp_path, capsys, family, left_out, line, num_adapters
):
    result = run(tmp_path, family)
    lines = capsys.readouterr().out.splitlines()
    out = "".join(text for text in lines if text.startswith("without an adapter: "))
    assert bool(out) == bool(left_out)
    assert all(reason in out for reason in left_out.values())
    assert [text for text in lines if "experts' " in text and text != out] == ([line] if line else [])
    plan = json.loads((result.run_path / "plan.json").read_text())
    saved = load_file(result.model_path / "adapter_model.safetensors")
    assert plan["num_adapters"] == num_adapters == sum(".lora_A." in name for name in saved)
    assert not any(f".{name}." in key for name in left_out for key in saved)
    of_layers = ["weight"] if family == "deepseek_v2" else []  # PEFT has other plans with the names of dense layers
    assert plan["target_parameters"] == (["down_proj", "gate_up_proj", *of_layers] if line else [])
    assert all(tensor.any() for tensor in saved.values())

    ids = torch.arange(40, 80)[None]
    base = AutoModelForCausalLM.from_pretrained(result.base_model_path, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, result.model_path).eval()
    plain = AutoModelForCausalLM.from_pretrained(folder_of(family), dtype=torch.float32).eval()
    with torch.no_grad():
        before, adapted = plain(ids, use_cache=False).logits, model(input_ids=ids, use_cache=False).logits
        merged = model.merge_and_unload()(ids, use_cache=False).logits
    change = (adapted - before).abs().max()
    assert change > 0.01
    assert (merged - adapted).abs().max() < 1e-3 * change


@pytest.mark.parametrize(
    ("family", "overrides", "text"),
    [
        (
            "mamba",
            ["algo.target_modules=attention"],
            "algo.target_modules=attention: no such layer of this model can get an adapter. "
            "Linear layers that can: in_proj, x_proj. Type algo.target_modules=auto",
        ),
        (
            "mamba",
            ["algo.target_modules=[in_proj,dt_proj]"],
            f"algo.target_modules: dt_proj can't get an adapter ({READ}). Allowed: in_proj, x_proj",
        ),
        (
            "zamba",
            ["algo.target_modules=attention"],
            "Left out: 2 x self_attn.q_proj, 2 x self_attn.k_proj, 2 x self_attn.v_proj, 2 x self_attn.o_proj "
            f"({SHARED}). Linear layers that can: in_proj, linear, out_proj.",
        ),
        (
            "deepseek_v2",
            ["algo.use_dora=true"],
            "PEFT can't add these adapters: lora.ParamWrapper does not work with use_dora=True. "
            "Type algo.use_dora=false, or algo.target_modules=attention, which leaves the experts out",
        ),
        ("mixtral", ["algo.lora_dropout=0.1"], "Type algo.lora_dropout=0, or algo.target_modules=attention, which leaves the "),
        (
            "mixtral",
            ["algo.init=orthogonal"],
            "algo.init=orthogonal works on linear layers, and model.layers.0.mlp.experts.gate_up_proj is none. "
            "Type algo.init=default, or algo.target_modules=attention",
        ),
        (
            "mixtral",
            ["algo.target_modules=[gate]"],
            "gate gets no adapter, only linear layers below the output layer and experts do. Allowed: down_proj, gate_",
        ),
    ],
)
def test_layers_that_can_not_have_an_adapter_are_refused_in_one_line(tmp_path, family, overrides, text):
    with pytest.raises(ConfigError) as refused:
        run(tmp_path, family, *overrides)
    assert text in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_name_takes_the_layers_of_that_name_that_can_have_an_adapter():
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path("llama"))
    left_out = {"model.layers.0.self_attn.q_proj": SHARED}
    assert target_names(["q_proj"], model, left_out) == ["model.layers.1.self_attn.q_proj"]
    with pytest.raises(
        ConfigError, match=r"lm_head gets no adapter, .*To train it as a whole type algo.modules_to_save=\[lm_head\]"
    ):
        target_names(["lm_head"], model)
    with pytest.raises(ConfigError, match=r"no linear layer is called lm_hed\. Allowed: down_proj"):
        target_names(["lm_hed"], model)
    with pytest.raises(ConfigError, match=r"layers\.0\.self_attn\.q_proj can't get an adapter"):
        target_names(["layers.0.self_attn.q_proj", "k_proj"], model, left_out)
