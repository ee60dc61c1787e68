"""A model's folder runs no code and leads to no other folder, whatever files it has."""

import hashlib
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hub.config.schema import ModelConfig
from hub.errors import ModelError
from hub.models.load import check_weights, load_causal_lm, load_config, load_tokenizer
from hub.models.safety import check_files, ignored_settings
from hub.models.weights import check_folder

ROOT = Path(__file__).parents[2]
RUN = ("data=tiny", "algo.max_steps=2", "algo.effective_batch_size=2", "launch.mode=inline", "model.dtype=float32")


def edit(file: Path, **values: Any) -> None:
    """Set values in a JSON object."""
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(content | values))


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        check_folder(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def load(folder: Path) -> Any:
    check_folder(folder)
    return load_causal_lm(ModelConfig(path=str(folder)), folder, torch.device("cpu"), torch.float32)


def test_the_pickle_of_these_tests_does_run_code_where_it_is_loaded(canary):
    pickle.loads(canary.pickle)
    assert canary.appeared()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_run_from_pickled_weights_is_one_clear_line(hub, folder, canary, name):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(canary.pickle)
    said = hub("algo=sft", "model.path=model", *RUN)
    assert (said.code, len(said.problems)) == (2, 1)
    assert ("its weights are pickled (" if name.endswith(".bin") else "is broken") in said.problems[0]
    assert not canary.appeared()


def test_a_pickle_beside_safetensors_is_never_opened(folder, canary):
    for name in ("pytorch_model.bin", "adapter_model.bin", "training_args.bin", "optimizer.pt"):
        (folder / name).write_bytes(canary.pickle)
    (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": {"lm_head.weight": "pytorch_model.bin"}}')
    stored = load_file(folder / "model.safetensors")
    loaded = load(folder).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in stored.items())
    assert not canary.appeared()


@pytest.mark.parametrize("weights", ["adapter_model.bin", "../other/model.safetensors", "other.safetensors", 7])
def test_a_config_that_names_other_weights_is_refused(folder, canary, weights):
    (folder / "adapter_model.bin").write_bytes(canary.pickle)
    edit(folder / "config.json", transformers_weights=weights)
    assert f"config.json names its weights itself (transformers_weights: {weights!r})" in refusal(folder)
    assert not canary.appeared()


def test_an_adapter_beside_the_model_is_refused(folder, canary):
    (folder / "adapter_model.bin").write_bytes(canary.pickle)
    edit(folder / "adapter_config.json", peft_type="LORA", base_model_name_or_path="somebody/else")
    assert "the folder also has an adapter (adapter_config.json)" in refusal(folder)
    (folder / "config.json").unlink()
    refusal(folder)
    assert not canary.appeared()


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors", "additional_chat_templates"]
)
def test_a_link_out_of_the_folder_is_refused(folder, name):
    outside = folder.parent / "private"
    if name == "additional_chat_templates":
        outside.mkdir()
    elif (folder / name).exists():
        (folder / name).rename(outside)
    else:
        outside.write_text("private")
    (folder / name).symlink_to(outside)
    assert f"{name} is a link to {outside}, outside the folder" in refusal(folder)


def test_links_within_the_folder_and_within_the_cache_of_the_model_hub_are_taken(folder, tmp_path):
    (folder / "model.safetensors").rename(folder / "data")
    (folder / "model.safetensors").symlink_to("data")
    check_folder(folder)
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / "0a", tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(folder.iterdir()):
        (blobs / str(number)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    check_folder(snapshot)
    snapshot.parent.rename(tmp_path / "models--x" / "copies")
    assert "outside the folder" in refusal(tmp_path / "models--x" / "copies" / "0a")


@pytest.mark.parametrize(
    "shard",
    ["../stolen.safetensors", "{parent}/stolen.safetensors", "sub/stolen.safetensors", "..\\stolen.safetensors", "stolen.bin"],
)
def test_shard_names_that_climb_out_are_refused(folder, shard):
    (folder / "model.safetensors").rename(folder.parent / "stolen.safetensors")
    edit(
        folder / "model.safetensors.index.json",
        weight_map={"model.norm.weight": shard.format(parent=folder.parent)},
    )
    assert "model.safetensors.index.json names" in refusal(folder)


def test_a_tokenizer_config_that_names_a_file_elsewhere_is_refused(folder, tmp_path):
    (tmp_path / "private").write_text("private")
    edit(folder / "tokenizer_config.json", vocab_file=str(tmp_path / "private"))
    assert "tokenizer_config.json (vocab_file) names" in refusal(folder)
    # What the author's machine had is a remnant and does no harm.
    edit(folder / "tokenizer_config.json", vocab_file="/home/author/vocab.json", tokenizer_file="tokenizer.json")
    check_folder(folder)


@pytest.mark.parametrize("content", ["[]", "{", "[" * 100_000, "\0", "{" + " " * 2**23 + "}"])
def test_a_config_that_is_no_json_object_is_one_line(folder, content):
    (folder / "config.json").write_text(content)
    assert "config.json" in (said := refusal(folder))
    assert ("at most 8,388,608 are read" in said) == (len(content) > 2**23)


def ask_for_code(folder: Path, module: str, **config: Any) -> None:
    (folder / "evil.py").write_text(
        # Classes of its own: transformers marks the ones that it finds, and the tests after this one use the real ones.
        module + "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class E(LlamaConfig):\n    pass\n"
        "class M(LlamaForCausalLM):\n    pass\n"
    )
    edit(folder / "config.json", auto_map={"AutoConfig": "evil.E", "AutoModelForCausalLM": "evil.M"}, **config)
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "evil.E"]})


def test_code_of_a_model_that_transformers_knows_is_not_run_and_that_is_said(hub, folder, canary):
    ask_for_code(folder, canary.module)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(canary.module)
    said = hub("algo=lora_sft", "model.path=model", *RUN)
    assert said.code == 0, said.err
    assert "config.json and tokenizer_config.json of the model name Python code (auto_map): it is not run" in said.out
    assert not canary.appeared()


def test_a_model_that_needs_its_own_code_is_refused_and_only_the_option_allows_it(hub, folder, canary, tmp_path, monkeypatch):
    ask_for_code(folder, canary.module, model_type="evil", trust_remote_code=True)
    data = tmp_path / "data"
    data.mkdir()
    (data / "chats.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], '
                                      '"model": {"trust_remote_code": true}, "trust_remote_code": true}\n')  # fmt: skip
    for name in ("config.yaml", "run.yaml", ".hydra/config.yaml", "conf/config.yaml", "conf/model/tiny.yaml"):
        for place in (data, tmp_path):
            (place / name).parent.mkdir(exist_ok=True, parents=True)
            (place / name).write_text("model:\n  trust_remote_code: true\ntrust_remote_code: true\n")
    said = hub("algo=sft", "model.path=model", *RUN, "data.path=data")
    assert (said.code, len(said.problems)) == (2, 1)
    assert "Type model.trust_remote_code=true only if you trust that code" in said.problems[0]
    assert not canary.appeared()
    # The proof that it is the option alone that kept the module out.
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    load_config(ModelConfig(path=str(folder), trust_remote_code=True), folder)
    assert canary.appeared()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
@pytest.mark.parametrize("kernel", ["evil/kernel", {"": "evil/kernel@main:run"}, "flash_attention_2"])
def test_kernels_are_not_chosen_by_the_config_of_a_model(folder, key, kernel):
    edit(folder / "config.json", **{key: kernel, "_experts_implementation": "evil/experts"})
    assert load(folder).config._attn_implementation == "sdpa"
    (line,) = ignored_settings(folder, False)
    assert "evil/experts" in line


def test_no_kernel_of_the_model_hub_is_fetched_by_transformers_itself(hub, folder, monkeypatch):
    monkeypatch.delenv("USE_HUB_KERNELS", raising=False)
    hub("algo=sft", "model.path=model", *RUN)
    assert os.environ["USE_HUB_KERNELS"] == "0"


@pytest.fixture
def checkpoint(hub, folder, tmp_path) -> Path:
    """The one checkpoint of a run that was killed."""
    said = hub("algo=lora_sft", "model.path=model", *RUN, "algo.save_every_steps=1", "run_name=run")
    assert said.code == 0, said.err
    (tmp_path / "runs/run/result.json").unlink()
    return tmp_path / "runs/run/checkpoints/step-00000001"


@pytest.mark.parametrize("name", ["trainable.safetensors", "optimizer.safetensors", "random-rank0.safetensors"])
def test_a_pickle_in_a_checkpoint_is_refused_although_its_manifest_agrees(hub, checkpoint, canary, name):
    (checkpoint / name).write_bytes(canary.pickle)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"][name] = {"size": len(canary.pickle), "sha256": hashlib.sha256(canary.pickle).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    said = hub(f"resume={checkpoint}", "launch.mode=inline")
    assert (said.code, len(said.problems)) == (2, 1)
    assert f"{name} is not a safetensors file, and no other format is read" in said.problems[0]
    assert not canary.appeared()


def test_what_runs_code_is_not_taken_over_from_the_folder_of_a_run(hub, checkpoint, canary, tmp_path):
    evil = tmp_path / "python"
    evil.write_text(f"#!/bin/sh\ntouch {canary.path}\n")
    evil.chmod(0o755)
    file = checkpoint.parents[1] / "run.yaml"
    text = file.read_text()
    for before, after in (("python: null", f"python: {evil}"), ("trust_remote_code: false", "trust_remote_code: true")):
        assert before in text
        file.write_text(text.replace(before, after))
        said = hub(f"resume={checkpoint}")
        assert (said.code, len(said.problems)) == (2, 1)
        assert "runs code and is not taken from its folder" in said.problems[0]
    assert not canary.appeared()


def test_no_preset_switches_remote_code_on():
    presets = [file for root in ("conf", "plugins", "examples") for file in (ROOT / root).rglob("*.yaml")]
    assert len(presets) > 20
    assert not [file for file in presets if "trust_remote_code:" in file.read_text(encoding="utf-8")]


def test_the_checks_take_the_models_that_the_hub_writes(folder):
    check_files(folder, "model")
    assert ignored_settings(folder, False) == []


def examined(folder: Path) -> str:
    """The line about a broken folder."""
    model = ModelConfig(path="x")

    def read() -> None:
        check_folder(folder, "model.path=x")
        check_weights(model, folder)
        load_tokenizer(model, folder)

    with pytest.raises(ModelError) as caught:
        read()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("file", "values", "named"),
    [
        ("config.json", {"quantization_config": "4bit"}, 'quantization_config="4bit" can\'t be used (it must be an object)'),
        ("config.json", {"dtype": "float17"}, 'dtype="float17" can\'t be used'),
        ("config.json", {"num_attention_heads": 0}, "num_attention_heads=0 can't be used"),
        ("config.json", {"hidden_size": "64"}, 'hidden_size="64" can\'t be used'),
        ("config.json", {"rope_parameters": {"rope_theta": 1e4, "rope_type": "x"}}, 'rope_parameters.rope_type="x"'),
        ("config.json", {"attention_dropout": 1.5}, "attention_dropout=1.5 can't be used (a rate of dropout is at least 0"),
        (
            "config.json",
            {"rope_parameters": {"rope_theta": -1.0}},
            "rope_theta=-1.0 can't be used (it must be a number",
        ),
        ("config.json", {"rms_norm_eps": -1e-6}, "rms_norm_eps=-1e-06 can't be used (it must be a number, and not negative)"),
        ("config.json", {"model_type": ["llama"]}, 'model_type=["llama"] can\'t be used (it must be a text)'),
        ("generation_config.json", {"pad_token_id": "x"}, 'pad_token_id="x" can\'t be used'),
        ("tokenizer_config.json", {"chat_template": [{"name": "default"}]}, "chat_template"),
        ("tokenizer_config.json", {"eos_token": ["</s>"]}, "eos_token"),
        ("tokenizer.json", {"model": {}}, "can't be used"),
        ("tokenizer.json", {"added_tokens": "x"}, 'added_tokens="x" can\'t be used'),
    ],
)
def test_broken_fields_are_named(folder, file, values, named):
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    edit(folder / file, **values)
    said = examined(folder)
    assert f"{file}" in said
    assert named in said


def test_a_template_that_is_no_text_and_a_tokenizer_that_is_missing_are_named(folder):
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe")
    assert "chat_template.jinja can't be used ('utf-8' codec can't decode" in examined(folder)
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer.json").unlink()
    assert "no readable tokenizer: none of the files that it could be read from lies in the folder" in examined(folder)


def test_a_field_that_fails_within_a_layer_is_named(hub, folder):
    edit(folder / "config.json", attention_dropout=None)
    (problem,) = hub("algo=sft", "model.path=model", *RUN).problems
    assert "/model: config.json: attention_dropout=null can't be used (scaled_dot_product_attention(): argument" in problem


@pytest.mark.parametrize("field", ["num_hidden_layers", "head_dim", "vocab_size", "hidden_size", "max_position_embeddings"])
def test_sizes_that_no_file_can_hold_are_refused_before_anything_is_built(folder, field):
    for value, reason in ((2**31, "with these files it is at most"), (-1, "must not be negative")):
        edit(folder / "config.json", **{field: value})
        said = examined(folder)
        assert f"config.json: {field}={value} can't be used" in said
        assert reason in said
