"""Weights that do not fit the model of config.json end the run with a line, or are read under their plain names."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForSequenceClassification
from zoo.zoo import zoo_model

from hub.config.schema import ModelConfig
from hub.errors import ModelError
from hub.models.causality import look_ahead
from hub.models.check_loaded import check_loaded
from hub.models.load import check_weights, load_causal_lm
from hub.testing import VOCAB, tiny_model, tiny_model_path

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture
def variant(base: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a copy of the model with other tensors, or other values in config.json."""

    def make(change: Callable[[Tensors], Tensors] = dict, **config: object) -> Path:
        folder = Path(shutil.copytree(base, tmp_path / "variant"))
        save_file(change(load_file(base / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})
        values = json.loads((folder / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps(values))
        return folder

    return make


def load(folder: Path):
    return load_causal_lm(ModelConfig(path=str(folder)), folder, "cpu", torch.float32)


def refusal(folder: Path) -> str:
    """The line that headers alone give. Loading must give the same."""
    cfg = ModelConfig(path=str(folder))
    with pytest.raises(ModelError) as before:
        check_weights(cfg, folder)
    with pytest.raises(ModelError) as loading:
        load(folder)
    assert str(before.value) == str(loading.value)
    assert "\n" not in str(before.value)
    return str(before.value).removeprefix(f"model.path={folder}: its weights do not fit LlamaForCausalLM of config.json: ")


@pytest.mark.parametrize("name", ["llama_tied", "gpt2", "deepseek_v3", "gpt_oss", "zamba", "rwkv", "llama4", "mistral3"])
def test_a_healthy_model_is_not_refused_or_renamed_and_sees_no_later_token(name):
    folder = zoo_model(name)
    assert check_weights(ModelConfig(path=name), folder) == []
    measured = look_ahead(load(folder), VOCAB, torch.device("cpu"), torch.float32)
    assert measured is not None
    assert measured < 1e-6


def renamed(prefix: str, old: str = "") -> Callable[[Tensors], Tensors]:
    return lambda tensors: {
        f"{prefix}{name.removeprefix(old)}" if name.startswith(old) else name: tensor for name, tensor in tensors.items()
    }


@pytest.mark.parametrize(
    "change",
    [
        renamed("_orig_mod."),
        renamed("module."),
        renamed("base_model.model."),
        renamed("module._orig_mod."),
        renamed("language_model."),
        renamed("model.language_model.", "model."),
        lambda tensors: {name.replace(".self_attn.", "._orig_mod.self_attn."): tensor for name, tensor in tensors.items()},
    ],
)
def test_a_wrappers_names_are_read_as_the_models_own(variant, base, tmp_path, change):
    folder = variant(change)
    (line,) = check_weights(ModelConfig(path="x"), folder)
    assert line.startswith("the names of the weights have a wrapper's ")
    model = load(folder)
    expected = load_file(base / "model.safetensors")
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    model.save_pretrained(tmp_path / "saved")
    assert load_file(tmp_path / "saved" / "model.safetensors").keys() == expected.keys()


def test_a_wrappers_names_in_several_files_and_with_experts(tmp_path):
    folder = tmp_path / "wrapped"
    plain = AutoModelForCausalLM.from_pretrained(tiny_model_path("mixtral"))
    plain.save_pretrained(folder, max_shard_size="100KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for file in set(index["weight_map"].values()):
        save_file(renamed("_orig_mod.")(load_file(folder / file)), folder / file, metadata={"format": "pt"})
    index["weight_map"] = {f"_orig_mod.{name}": file for name, file in index["weight_map"].items()}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    state = load(folder).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in plain.state_dict().items())


def without(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


LAYER = "model.layers.0."


@pytest.mark.parametrize(
    ("change", "config", "words"),
    [
        (without("lm_head"), {}, ["1 tensor of the model is missing (lm_head.weight)", '"tie_word_embeddings": true']),
        (without("0.mlp.up_proj"), {}, ["1 tensor of the model is missing (model.layers.0.mlp.up_proj.weight)", "again"]),
        (dict, {"num_hidden_layers": 4}, ["18 tensors of the model are missing", "num_hidden_layers=4, the files have 2"]),
        (dict, {"num_hidden_layers": 1}, ["9 tensors in the files have no place", "num_hidden_layers=1, the files have 2"]),
        (dict, {"vocab_size": 600}, ["lm_head.weight: [512, 64] in the files, [600, 64] in the model"]),
        (renamed("strange."), {}, ["21 tensors of the model are missing", "strange.lm_head.weight"]),
        (renamed(f"_orig_mod.{LAYER}", LAYER), {}, ["Some names have _orig_mod. and others do not"]),
        (renamed(f"{LAYER}_orig_mod.", LAYER), {}, ["Some names have _orig_mod. and others do not"]),
        (renamed("model.language_model.layers.0.", LAYER), {}, ["9 tensors of the model are missing"]),
        (lambda tensors: tensors | renamed("module.")(tensors), {}, ["21 tensors in the files have no place in it"]),
        (lambda tensors: tensors | {"a.lora_A.weight": torch.ones(1)}, {}, ["a.lora_A.weight", "merge_and_unload"]),
    ],
)
def test_weights_that_do_not_fit_end_the_run(variant, change, config, words):
    line = refusal(variant(lambda tensors: {name: tensor.clone() for name, tensor in change(tensors).items()}, **config))
    assert all(word in line for word in words), line


def test_a_reward_model_is_no_base_model(base, tmp_path, hub):
    folder = tmp_path / "reward"
    LlamaForSequenceClassification.from_pretrained(base, num_labels=1).save_pretrained(folder)
    assert "(lm_head.weight)" in refusal(folder)
    shutil.copy(base / "tokenizer.json", folder)
    shutil.copy(base / "tokenizer_config.json", folder)
    said = hub("algo=sft", f"model.path={folder}", "data=tiny", "algo.max_steps=1", "launch.mode=inline", "run_name=r")
    assert said.code == 2
    (problem,) = said.problems
    assert "classifier or reward model" in problem
    assert not (tmp_path / "runs" / "r" / "metrics.jsonl").exists()


def test_numbers_that_a_model_computes_itself_may_be_in_the_files(variant):
    extra = {
        f"{LAYER}self_attn.rotary_emb.inv_freq": torch.ones(8),
        f"{LAYER}attn.bias": torch.ones(1, 1, 32, 32),
        f"{LAYER}attn.masked_bias": torch.tensor(-1e4),
        "mtp.layers.0.mlp.up_proj.weight": torch.ones(4, 4),
        "model.layers.2.mlp.up_proj.weight": torch.ones(4, 4),
    }
    folder = variant(lambda tensors: tensors | extra, num_nextn_predict_layers=1)
    assert check_weights(ModelConfig(path="x"), folder) == []
    load(folder)


def test_whoever_loads_a_model_can_check_its_numbers(base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    assert check_loaded(adapted, base) == 21
    model.model.layers[1].mlp.up_proj.weight.data.mul_(1.1)
    with pytest.raises(
        ModelError, match=r"1 of 21 tensors of the loaded model are not those of .*: model.layers.1.mlp.up_proj"
    ):
        check_loaded(adapted, base)
    with pytest.raises(ModelError, match="none of the tensors"):
        check_loaded(model, tiny_model_path("gpt2"))


def test_an_adapter_of_a_wrapped_base_is_loaded_by_the_line_that_is_printed(variant, base, tmp_path, hub):
    folder = variant(renamed("_orig_mod."))
    options = ("data=tiny", "algo.max_steps=2", "model.dtype=float32", "launch.mode=inline")
    outputs = []
    for path in (folder, base):
        said = hub("algo=lora_sft", f"model.path={path}", *options, f"run_name={path.name}")
        assert said.code == 0, said.err
        call = said.out.splitlines()[-1].removeprefix("load it: ")
        assert ("key_mapping" in call) == (path == folder)
        outputs.append(eval(call, {"peft": peft}).eval()(input_ids=torch.arange(5, 40)[None]).logits)
    assert torch.equal(*outputs)
