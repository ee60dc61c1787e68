"""What lies in a saved folder beside the weights: the base's own files, and the base's name as the user gave it."""

import json
import os
from pathlib import Path

import pytest
from huggingface_hub import constants
from transformers import AutoTokenizer

from hub import compose
from hub.cli.pages import result_lines
from hub.config.schema import ModelConfig
from hub.errors import ModelError
from hub.launch.launcher import launch
from hub.models.weights import local_weights
from hub.testing import tiny_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OF_BASE = {"tokenizer.model": "pieces", "vocab.json": "{}", "LICENSE.txt": "terms", "preprocessor_config.json": "{}"}
"""Files of a base that saving alone does not write."""


@pytest.fixture
def snapshot(tmp_path, monkeypatch):
    """A model in the model hub's cache, as acme/tiny. The model hub can't be reached."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = cache / "models--acme--tiny"
    for place in ("refs", "snapshots"):
        (folder / place).mkdir(parents=True)
    for name in ("main", "v1"):
        (folder / "refs" / name).write_text(COMMIT)
    tiny_model(folder / "snapshots" / COMMIT)
    return folder / "snapshots" / COMMIT


def test_a_copy_without_weights_is_not_said_to_be_missing(snapshot):
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"here, the copy in the model hub's cache can't be used \(it has neither model.safet"):
        local_weights(ModelConfig(path="acme/tiny"), print)


def train(folder, *words):
    options = ("data=tiny", "launch=inline", "algo.max_steps=1", "algo.effective_batch_size=4", "model.dtype=float32")
    return launch(compose(f"output_dir={folder}", *options, *words))


def texts_of(folder: Path) -> str:
    return "".join(file.read_text() for file in folder.rglob("*") if file.is_file() and file.suffix != ".safetensors")


@pytest.mark.parametrize(("algo", "revision"), [("lora_sft", None), ("lora_sft", "v1"), ("sft", None), ("osft", None)], ids=str)
def test_no_path_of_this_machine_leaves_with_a_model(tmp_path, snapshot, algo, revision):
    for name, text in OF_BASE.items():
        (snapshot / name).write_text(text)
    base = {name: (snapshot / name).read_bytes() for name in os.listdir(snapshot) if name != "model.safetensors"}
    options = [f"algo={algo}", "model.path=acme/tiny", "algo.save_every_steps=1", "algo.max_steps=2"]
    result = train(tmp_path / "runs", *options, *([f"model.revision={revision}"] if revision else []))
    for folder in (result.model_path, result.run_path / "checkpoints/step-00000001/model"):
        assert {name: (folder / name).read_text() for name in OF_BASE} == OF_BASE
        missing = base.keys() - set(os.listdir(folder))
        assert missing == ({"config.json"} if algo == "lora_sft" else set())
        written = texts_of(folder)
        assert str(tmp_path) not in written
        assert str(Path.home()) not in written
        assert "is_local" not in written
        ours, theirs = (
            json.loads(file) for file in (base["generation_config.json"], (folder / "generation_config.json").read_text())
        )
        assert ours == theirs
        if algo == "lora_sft":
            adapter = json.loads((folder / "adapter_config.json").read_text())
            assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("acme/tiny", revision or COMMIT)
            assert adapter["target_modules"] == sorted(adapter["target_modules"])
            card = (folder / "README.md").read_text()
            assert "\nbase_model: acme/tiny\n" in f"\n{card}"
            assert "- base_model:adapter:acme/tiny\n" in card
    assert "AutoPeft" in result_lines(result)[-1] or algo != "lora_sft"


def test_a_base_that_is_a_folder_stays_a_path_and_one_line_says_so(tmp_path, capsys):
    folder = tiny_model(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    words = json.loads((folder / "tokenizer.json").read_text())
    words["added_tokens"].append({**words["added_tokens"][-1], "id": len(tokenizer), "content": "<|own|>"})
    (folder / "tokenizer.json").write_text(json.dumps(words))
    (folder / "tokenizer.model").write_text("pieces")
    result = train(tmp_path, "algo=lora_sft", f"model.path={folder}")
    adapter = json.loads((result.model_path / "adapter_config.json").read_text())
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == (str(folder), None)
    assert capsys.readouterr().out.count(f"the adapter will name its base by the folder that was given, {folder}. To ") == 1
    assert json.loads((result.model_path / "added_tokens.json").read_text()) == {"<|own|>": len(tokenizer)}


def test_an_adapter_of_a_made_base_names_it_as_the_user_did_and_the_last_line_loads_it(tmp_path):
    result = train(tmp_path, "algo=lora_sft", "model=tiny")
    adapter = json.loads((result.model_path / "adapter_config.json").read_text())
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("tiny:llama", None)
    base = f"transformers.AutoModelForCausalLM.from_pretrained('{result.base_model_path}')"
    assert result_lines(result)[-1] == f"load it: peft.PeftModel.from_pretrained({base}, '{result.model_path}')"
    assert str(result.base_model_path) not in texts_of(result.model_path)
