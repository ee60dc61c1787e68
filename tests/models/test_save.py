"""What is saved is what transformers itself would save: the same names, dtypes and bits."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from zoo.saved import differences, tensors
from zoo.zoo import zoo_model

from hub import compose
from hub.launch.launcher import launch
from hub.models.save import save_whole_model
from hub.parallel.strategy import full_weights
from hub.testing import tokenizer


# float32 by `_keep_in_fp32_modules_strict`; of weights that train, too; by the class itself. And a tied one.
@pytest.mark.parametrize("name", ["glm4_moe", "ernie4_5_moe", "zamba", "llama_tied"])
def test_an_untrained_model_is_saved_as_transformers_saves_it(tmp_path, name):
    assert differences(name, tmp_path) == []


def test_changes_of_a_tenth_of_what_bfloat16_resolves_are_in_the_saved_model_on_average(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(zoo_model("llama_tied")).bfloat16().float()
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kept = "model.embed_tokens.weight"
    for name, parameter in model.named_parameters():
        if name != kept:
            parameter.data *= 1 + 2**-11
    for folder in ("one", "two"):
        save_whole_model(model, tokenizer(), tmp_path / folder, torch.bfloat16, full_weights(model))
    one, two = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    assert all(torch.equal(one[name], two[name]) for name in one), "a run that is resumed saves the same"
    assert torch.equal(one.pop(kept).float(), base[kept]), "what did not train stays"
    found, asked = (sum(float((m[name].double() * base[name]).sum()) for name in one) for m in (one, model.state_dict()))
    start = sum(float(base[name].double().square().sum()) for name in one)
    assert (found - start) / (asked - start) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("algo", ["algo=sft algo.master_weights=false", "algo=osft"])
def test_what_transformers_keeps_in_float32_trains_and_is_saved_in_it(tmp_path, algo):
    assert differences("ernie4_5_moe", tmp_path, torch.bfloat16) == []
    tokenizer().save_pretrained(tmp_path / "base")
    cfg = compose(
        *algo.split(), f"model.path={tmp_path / 'base'}", "model.dtype=bfloat16", "data=tiny", "launch=inline",
        f"output_dir={tmp_path / 'runs'}", "algo.max_steps=2", "algo.save_every_steps=1", "algo.effective_batch_size=4",
    )  # fmt: skip
    result = launch(cfg)
    base, saved = tensors(tmp_path / "base"), tensors(result.model_path)
    kept = {name for name, tensor in base.items() if tensor.dtype == torch.float32}
    assert kept == {f"model.layers.1.mlp.{name}" for name in ("gate.weight", "moe_statics.e_score_correction_bias")}
    for model in (saved, tensors(result.run_path / "checkpoints/step-00000001/model")):
        assert {name: tensor.dtype for name, tensor in model.items()} == {name: tensor.dtype for name, tensor in base.items()}
    name = "model.layers.1.mlp.moe_statics.e_score_correction_bias"
    assert torch.equal(saved[name], base[name])


@pytest.mark.parametrize(
    ("words", "dtype"),
    [
        ("algo=sft", "bfloat16"),
        ("algo=sft model.dtype=float32", "float32"),
        ("algo=sft algo.master_weights=false", "bfloat16"),
        ("algo=osft", "bfloat16"),
        ("algo=osft model.dtype=float32", "float32"),
        ("algo=lora_sft", "float32"),
        ("algo=sft gemma3", "bfloat16"),
    ],
)
def test_the_config_says_the_dtype_that_the_headers_have(tmp_path, words, dtype):
    algo, *options = words.split()
    model = f"model.path={zoo_model('gemma3')}" if options == ["gemma3"] else "model=tiny"
    options = [*(option for option in options if "=" in option), f"output_dir={tmp_path}", "algo.effective_batch_size=4"]
    if not any(option.startswith("model.dtype") for option in options):
        options.append("model.dtype=bfloat16")
    result = launch(compose(algo, model, "data=tiny", "launch=inline", "algo.max_steps=1", *options))
    assert {str(tensor.dtype).removeprefix("torch.") for tensor in tensors(result.model_path).values()} == {dtype}
    if algo == "algo=lora_sft":
        return  # peft's config has no dtype
    config = json.loads((result.model_path / "config.json").read_text())
    parts = [config, *(value for value in config.values() if isinstance(value, dict) and "dtype" in value)]
    assert {part["dtype"] for part in parts} == {dtype}
    assert len(parts) == (3 if "gemma3" in words else 1)
    if len(parts) > 1:
        assert AutoModelForImageTextToText.from_pretrained(result.model_path).dtype == torch.bfloat16
