"""Adapters that are scaled and averaged, and whole models that are averaged: compared with the weights they stand for."""

import json
from unittest.mock import Mock

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hub.errors import ConfigError
from hub.models import adapters
from hub.models.adapters import StoredAdapter, average, scaled
from hub.models.averaging import average_models
from hub.models.tiny import tiny_model_path
from hub.tasks.scale.replaced import of_strength, on_line, replaced_by

BASE = tiny_model_path("llama")


def make(folder, seed: int, base=BASE, **options):
    """An adapter with random factors, saved by peft."""
    torch.manual_seed(seed)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", **options))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return folder


def change(folder, base=BASE) -> dict[str, torch.Tensor]:
    """What an adapter adds to each weight, by merging it with peft."""
    before = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64), folder)
    after = merged.merge_and_unload()
    return {name: tensor - before.state_dict()[name] for name, tensor in after.state_dict().items()}


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def mixed(changes, weights):
    return {name: sum(w * one[name] for w, one in zip(weights, changes, strict=True)) for name in changes[0]}


@pytest.fixture
def two(tmp_path):
    """Two adapters of other ranks, scalings and layers."""
    options = {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": ["q_proj", "up_proj"],
        "rank_pattern": {"layers.0.self_attn.q_proj": 2},
    }
    first = make(tmp_path / "first", 1, **options)
    second = make(tmp_path / "second", 2, r=3, lora_alpha=5, use_rslora=True, target_modules=["q_proj", "down_proj"])
    return [first, second]


def test_an_average_is_that_of_the_products_and_not_of_the_factors(two, tmp_path):
    changes = [change(folder) for folder in two]
    average([StoredAdapter.read(folder) for folder in two], [0.3, 0.5]).write(tmp_path / "averaged")
    expected = mixed(changes, [0.3, 0.5])
    assert max(float(tensor.abs().max()) for tensor in expected.values()) > 0.1
    assert difference(change(tmp_path / "averaged"), expected) < 1e-7


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_adapters_on_experts_are_averaged_expert_by_expert(tmp_path, family):
    base, named = tiny_model_path(family), {"target_modules": ["q_proj"], "target_parameters": ["experts.down_proj"]}
    both = named | {"target_parameters": ["gate_up_proj", "experts.down_proj"]}
    pattern = {r".*\.down_proj": 4}
    first = make(tmp_path / "1", 1, base, r=2, lora_alpha=6, rank_pattern=pattern, **both)
    second = make(tmp_path / "2", 2, base, r=3, lora_alpha=5, use_rslora=True, **named)
    changes = [change(folder, base) for folder in (first, second)]
    read = [StoredAdapter.read(folder) for folder in (first, second)]
    assert {product.num_experts for adapter in read for product in adapter.products.values()} == {1, 4}
    with pytest.raises(ConfigError, match=r"the average has different ranks for the tensors of .*experts\. Type rank=N"):
        average(read, [0.3, 0.5])
    average([read[1], read[1]], [0.3, 0.5]).write(tmp_path / "exact")
    expected = mixed([changes[1], changes[1]], [0.3, 0.5])
    assert max(float(tensor.abs().max()) for tensor in expected.values()) > 0.1
    assert difference(change(tmp_path / "exact", base), expected) < 1e-6
    average(read, [0.5, 0.5], rank=2).write(tmp_path / "small")
    found, dense = change(tmp_path / "small", base), mixed(changes, [0.5, 0.5])
    name = "model.layers.1.mlp.experts.down_proj"
    for expert in range(4):
        u, values, v = torch.linalg.svd(dense[name][expert], full_matrices=False)
        assert float((found[name][expert] - (u[:, :2] * values[:2]) @ v[:2]).abs().max()) < 1e-6
    scaled(read[1], 2.0).write(tmp_path / "scaled")
    assert difference(change(tmp_path / "scaled", base), mixed([changes[1]], [2.0])) < 1e-6


def test_an_average_of_a_smaller_rank_is_the_best_one(two, tmp_path):
    expected = mixed([change(folder) for folder in two], [0.5, 0.5])
    average([StoredAdapter.read(folder) for folder in two], [0.5, 0.5], rank=3).write(tmp_path / "averaged")
    found = change(tmp_path / "averaged")
    for name, dense in expected.items():
        if dense.ndim == 2 and float(dense.abs().max()) > 0:
            u, values, v = torch.linalg.svd(dense)
            best = (u[:, :3] * values[:3]) @ v[:3]
            assert float((found[name] - best).abs().max()) < 1e-6


def test_scaling_interpolates_between_the_base_and_the_trained_weights(two, tmp_path):
    for folder in two:
        scaled(StoredAdapter.read(folder), 0.25).write(tmp_path / "scaled")
        assert difference(change(tmp_path / "scaled"), mixed([change(folder)], [0.25])) < 1e-7


def test_whole_modules_and_rows_of_tokens_are_scaled_as_the_products_are(tmp_path):
    kinds = {"modules_to_save": ["lm_head", "norm"], "trainable_token_indices": {"embed_tokens": [1, 5]}}
    folder = make(tmp_path / "whole", 7, r=2, target_modules=["q_proj"], **kinds)
    stored = StoredAdapter.read(folder)
    for tensor in stored.replacing.values():
        tensor += 0.1 * torch.randn_like(tensor)
    assert len(stored.others) == len(stored.replacing) == 7
    stored.write(tmp_path / "trained")
    changed = change(tmp_path / "trained")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float64), tmp_path / "trained")
    replaced = replaced_by(model)
    others = {name: on_line(stored.tensors[name], base, 0.25) for name, (_, base) in replaced.items()}
    scaled(stored, 0.25, others).write(tmp_path / "scaled")
    assert difference(change(tmp_path / "scaled"), mixed([changed], [0.25])) < 1e-7
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with of_strength(replaced, 0.25):
        for name, (trained, _) in replaced.items():
            assert torch.allclose(trained, others[name].double(), atol=1e-7)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


def test_what_is_no_product_is_averaged_as_it_is_or_refused(two, tmp_path):
    whole = [make(tmp_path / f"with{n}", n, r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]) for n in (3, 4)]
    read = [StoredAdapter.read(folder) for folder in whole]
    average(read, [0.5, 0.5]).write(tmp_path / "averaged")
    assert difference(change(tmp_path / "averaged"), mixed([change(folder) for folder in whole], [0.5, 0.5])) < 1e-6
    again = "Average them without base=, and then type hub scale model.path=AVERAGE alpha=0.5"
    with pytest.raises(ConfigError, match=rf"trained more than its products .*lm_head.* {again}"):
        average(read, [0.25, 0.25])
    with pytest.raises(ConfigError, match=rf"To do the same type hub scale model.path={whole[0]} alpha=0.25"):
        average(read[:1], [0.25])
    dora = StoredAdapter.read(make(tmp_path / "dora", 5, r=2, target_modules=["q_proj"], use_dora=True))
    biased = StoredAdapter.read(two[0])
    biased.tensors["base_model.model.model.layers.0.self_attn.q_proj.bias"] = torch.ones(4)
    for refused, line in (
        (lambda: average([dora, dora], [0.5, 0.5]), "use_dora=true: .* hub average runs=MERGED,BASE weights="),
        (lambda: scaled(dora, 0.5), "use_dora=true"),
        (lambda: scaled(biased, 0.5), "trained biases"),
    ):
        with pytest.raises(ConfigError, match=line):
            refused()
    other = StoredAdapter.read(two[0])
    other.config["base_model_name_or_path"] = "elsewhere"
    with pytest.raises(ConfigError, match="different bases"):
        average([other, StoredAdapter.read(two[1])], [0.5, 0.5])


def test_a_full_disk_is_one_line_and_leaves_nothing(two, tmp_path, monkeypatch):
    adapter = StoredAdapter.read(two[0])
    for error in (OSError(28, "No space left on device"), SafetensorError("Error while serializing: StorageFull")):
        monkeypatch.setattr(adapters, "save_file", Mock(side_effect=error))
        with pytest.raises(ConfigError, match=r"can't write there \((No space|Error)"):
            adapter.write(tmp_path / "out")
    assert {file.name for file in tmp_path.iterdir()} == {"first", "second"}


def test_whole_models_are_averaged_in_float32_and_rounded_once_by_chance(tmp_path):
    folders = []
    for seed in (0, 1, 2):
        model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.bfloat16)
        torch.manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.data += torch.randn_like(parameter) * 0.1
        model.save_pretrained(tmp_path / str(seed), max_shard_size="100KB" if seed == 0 else "1GB")
        folders.append(tmp_path / str(seed))
    average_models(folders, [0.2, 0.3, 0.5], tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    each = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).state_dict() for folder in folders]
    expected = mixed(each, [0.2, 0.3, 0.5])
    assert loaded.dtype == torch.bfloat16
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=2**-7, atol=1e-6)
        if "norm" in name:
            assert torch.equal(tensor.double(), expected[name]), "what all models have stays"
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    assert len(load_file(tmp_path / "out" / next(iter(index["weight_map"].values())))) > 0


def test_an_average_of_models_that_differ_by_one_step_of_bfloat16_is_right_on_average(tmp_path):
    start = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.bfloat16)
    start.save_pretrained(tmp_path / "base")
    for parameter in start.parameters():
        parameter.data = (parameter.data.view(torch.int16) + 1).view(torch.bfloat16)
    start.save_pretrained(tmp_path / "tuned")
    average_models([tmp_path / "base", tmp_path / "tuned"], [0.7, 0.3], tmp_path / "out")
    base, tuned, found = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "tuned", "out"))
    total = sum(tensor.numel() for tensor in base.values())
    assert all(((found[name] == base[name]) | (found[name] == tuned[name])).all() for name in base)
    assert sum(int((found[name] == tuned[name]).sum()) for name in base) / total == pytest.approx(0.3, abs=0.01)


def test_different_models_are_not_averaged(tmp_path):
    AutoModelForCausalLM.from_pretrained(BASE).save_pretrained(tmp_path / "one")
    with pytest.raises(ConfigError, match="different models"):
        average_models([tmp_path / "one", tiny_model_path("qwen2")], [0.5, 0.5], tmp_path / "out")
    assert not (tmp_path / "out").exists()
