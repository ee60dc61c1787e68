"""Of a model of images and text the text part trains, and all of it is kept."""

import json

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
from zoo.saved import tensors
from zoo.zoo import MULTIMODAL, zoo_model

from hub import ConfigError, compose
from hub.cli.pages import result_lines
from hub.compose import runfile
from hub.data.prepare import prepare
from hub.launch.launcher import launch
from hub.models.multimodal import auto_class
from hub.models.structure import layers_of, output_layer, text_config
from hub.parallel.group import Group
from hub.parallel.zero import Zero

IMAGES = ("vision_tower", "vision_model", "visual", "model.visual", "multi_modal_projector")
"""Beginnings of the names of what no text passes through."""


def train(folder, name, *more):
    cfg = compose(
        f"model.path={zoo_model(name)}", "data=tiny", "launch=inline", "model.dtype=float32", f"output_dir={folder}",
        "algo.max_steps=2", "algo.learning_rate=1e-2", "algo.effective_batch_size=8", *more,
    )  # fmt: skip
    result = launch(cfg)
    return result, runfile.read(result.run_path / "run.yaml"), json.loads((result.run_path / "plan.json").read_text())


@torch.no_grad()
def loss_of(model, cfg, folder):
    total = count = 0.0
    for sample in prepare(cfg, AutoTokenizer.from_pretrained(folder), None).evaluation:
        ids = torch.from_numpy(sample.input_ids).long()[None]
        labels = torch.where(torch.from_numpy(sample.loss_mask), ids[0], -100)[1:]
        total += F.cross_entropy(model(input_ids=ids).logits[0, :-1], labels, reduction="sum").item()
        count += int((labels != -100).sum())
    return total / count


@pytest.mark.parametrize(("name", "options"), [("gemma3", "algo=osft algo.train_norms=true"), ("llama4", "algo=sft")])
def test_the_same_class_comes_out_with_all_that_takes_no_text_bit_for_bit(tmp_path, name, options):
    base = zoo_model(name)
    result, cfg, plan = train(tmp_path, name, *options.split())
    before, after = tensors(base), tensors(result.model_path)
    assert before.keys() == after.keys()
    images = {key for key in before if key.startswith(IMAGES)}
    unchanged = {key for key in before if torch.equal(before[key], after[key])}
    assert images
    assert images <= unchanged
    assert len(unchanged) < len(before)
    old, new = (json.loads((folder / "config.json").read_text()) for folder in (base, result.model_path))
    assert (new["architectures"], new["model_type"]) == (old["architectures"], old["model_type"])
    assert {*(file.name for file in base.iterdir()), "README.md"} == {file.name for file in result.model_path.iterdir()}
    model = AutoModelForImageTextToText.from_pretrained(result.model_path, dtype=torch.float32).eval()
    assert loss_of(model, cfg, result.model_path) == pytest.approx(result.eval_loss, abs=1e-4)
    assert result.eval_loss < result.eval_loss_before - 1e-3
    if "algo=sft" in options:
        assert plan["trainable_parameters"] == sum(before[key].numel() for key in before.keys() - images)
        assert plan["parameters"] == sum(tensor.numel() for tensor in before.values())
    assert (
        result_lines(result)[-1] == f"load it: transformers.AutoModelForImageTextToText.from_pretrained('{result.model_path}')"
    )


@pytest.mark.slow
def test_an_adapter_is_beside_layers_of_text_only_and_loads_onto_the_base(tmp_path):
    base = zoo_model("qwen2_5_vl")
    result, cfg, _ = train(tmp_path, "qwen2_5_vl", "algo=lora_sft", "algo.bias=all")
    names = load_file(result.model_path / "adapter_model.safetensors")
    assert {".".join(name.split(".")[2:5]) for name in names} == {"model.language_model.layers"}
    assert any(name.endswith("bias") for name in names)
    targets = json.loads((result.model_path / "adapter_config.json").read_text())["target_modules"]
    assert all(name.startswith("model.language_model.layers.") for name in targets)
    model = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base), result.model_path).eval()
    assert loss_of(model, cfg, result.model_path) == pytest.approx(result.eval_loss, abs=1e-4)
    assert result.eval_loss < result.eval_loss_before - 1e-3
    expected = f"peft.PeftModel.from_pretrained(transformers.AutoModelForImageTextToText.from_pretrained('{base}'), "
    assert result_lines(result)[-1] == f"load it: {expected}'{result.model_path}')"


@pytest.mark.parametrize("name", MULTIMODAL)
def test_the_class_is_the_one_that_the_base_was_stored_with(name):
    config = AutoConfig.from_pretrained(zoo_model(name))
    assert auto_class(config) is AutoModelForImageTextToText
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    assert len(layers_of(model)) == text_config(model).num_hidden_layers
    assert output_layer(model).out_features == text_config(model).vocab_size
    with pytest.raises(ConfigError, match=r"launch\.strategy=zero2 trains whole models only, and the vision part"):
        Zero(2, Group(0, 1, 0, torch.device("cpu")), torch.float32, False, None).place(model)
    config.architectures = ["OfTextAlone"]
    assert auto_class(config) is auto_class(config.get_text_config()) is AutoModelForCausalLM
