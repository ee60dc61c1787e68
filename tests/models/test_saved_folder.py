"""What lies in a saved folder beside the weights: the base's own files, and the base's name as the user gave it."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, dynamic_module_utils

from hub import compose
from hub.cli.pages import result_lines
from hub.config.schema import ModelConfig
from hub.errors import ModelError
from hub.launch.launcher import launch
from hub.models.weights import local_weights
from hub.testing import tiny_model

CODE = {
    "configuration_x.py": """
from transformers import LlamaConfig

class XConfig(LlamaConfig):
    model_type = "of_its_own"
""",
    "mixing_x.py": """
import torch

class Mix(torch.nn.Module):
    def __init__(self, size):
        super().__init__()
        self.proj = torch.nn.Linear(size, size, bias=False)

    def forward(self, hidden):
        return hidden + self.proj(hidden)
""",
    "modeling_x.py": """
from transformers import LlamaForCausalLM, LlamaModel
from .configuration_x import XConfig
from .mixing_x import Mix

class XModel(LlamaModel):
    config_class = XConfig

    def __init__(self, config):
        super().__init__(config)
        self.mix = Mix(config.hidden_size)
        self.post_init()

    def forward(self, *args, **options):
        out = super().forward(*args, **options)
        out.last_hidden_state = self.mix(out.last_hidden_state)
        return out

class XForCausalLM(LlamaForCausalLM):
    config_class = XConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = XModel(config)
        self.post_init()
""",
    "tokenization_x.py": """
from transformers import PreTrainedTokenizerFast

class XTokenizer(PreTrainedTokenizerFast):
    pass
""",
    "processing_x.py": "from . import constants_x\n",
    "constants_x.py": "SIZE = 1\n",
    "train_it.py": "",
}
"""The code of a model of its own: file -> text. The last is no part of it."""

MAPS = {
    "config.json": {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.XForCausalLM",
                    "AutoModel": "modeling_x.XModel", "AutoModelForSequenceClassification": "acme/other--modeling_y.Y"},
    "tokenizer_config.json": {"AutoTokenizer": [None, "tokenization_x.XTokenizer"]},
    "preprocessor_config.json": {"AutoProcessor": "processing_x.XProcessor"},
}  # fmt: skip
"""File -> the code that it names."""

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


def with_code(folder: Path, model_type: str) -> Path:
    """A tiny model whose files name code."""
    tiny_model(folder)
    for name, text in CODE.items():
        (folder / name).write_text(text)
    for name, named in MAPS.items():
        values = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
        (folder / name).write_text(json.dumps(values | {"auto_map": named}))
    config = json.loads((folder / "config.json").read_text())
    if model_type != config["model_type"]:
        kept = {"model_type": model_type, "architectures": ["XForCausalLM"]}
        (folder / "config.json").write_text(json.dumps(config | kept))
        made = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(folder, trust_remote_code=True), trust_remote_code=True
        )
        save_file(
            {name: value.clone() for name, value in made.state_dict().items()}, folder / "model.safetensors", {"format": "pt"}
        )
    return folder


@pytest.fixture
def no_code_loaded(tmp_path, monkeypatch):
    """No code of a model is imported yet, and transformers copies such code into a folder of this test."""

    def forget() -> None:
        for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
            del sys.modules[name]

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", sys.path.copy())
    forget()
    yield
    forget()


@pytest.mark.usefixtures("no_code_loaded")
@pytest.mark.parametrize("algo", ["sft", "osft", "lora_sft"])
def test_a_model_with_code_of_its_own_loads_from_any_place(tmp_path, algo):
    base = with_code(tmp_path / "base", "of_its_own")
    result = train(tmp_path / "runs", f"algo={algo}", f"model.path={base}", "model.trust_remote_code=true")
    away = shutil.copytree(result.model_path, tmp_path / "elsewhere/away")
    code = {file.name: file.read_text() for file in away.glob("*.py")}
    used = {"tokenization_x.py", "processing_x.py", "constants_x.py"}
    if algo == "lora_sft":
        named = json.loads((away / "adapter_config.json").read_text())["base_model_name_or_path"]
        assert named == str(base)
        adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(named, trust_remote_code=True), away)
        merged = adapted.merge_and_unload()
        away = tmp_path / "elsewhere/merged"
        merged.save_pretrained(away)
        stored = merged.state_dict()
    else:
        used |= {"configuration_x.py", "modeling_x.py", "mixing_x.py"}
        assert json.loads((away / "config.json").read_text())["auto_map"].items() >= MAPS["config.json"].items()
        assert type(AutoTokenizer.from_pretrained(away, trust_remote_code=True)).__name__ == "XTokenizer"
        stored = load_file(away / "model.safetensors")
    assert code == {name: CODE[name] for name in used}
    shutil.rmtree(base)
    model = AutoModelForCausalLM.from_pretrained(away, trust_remote_code=True)
    assert type(model).__name__ == "XForCausalLM"
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())


def test_code_that_is_not_used_is_neither_copied_nor_named(tmp_path):
    base = with_code(tmp_path / "base", "llama")
    result = train(tmp_path, "algo=sft", f"model.path={base}")
    assert not list(result.model_path.glob("*.py"))
    assert "auto_map" not in texts_of(result.model_path)
    for kind in (AutoModelForCausalLM, AutoTokenizer):  # a server may be started with that option
        assert kind.from_pretrained(result.model_path, trust_remote_code=True)
