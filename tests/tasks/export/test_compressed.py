"""Compressed models: what is left out, what stands in the way, and that the other process reads what was written."""

import io
import json
import os
import shutil
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from zoo.zoo import zoo_model

from hub.config.data import DataConfig
from hub.config.export import ExportConfig
from hub.errors import ModelError
from hub.tasks.export.compressed import interpreter, read_model, reader, write
from hub.tasks.export.compressed.compress_model import RefusedError, complete, group_size, layers_to_compress, refuse_experts
from hub.tasks.export.compressed.exporter import problems
from hub.tasks.export.readers import open_folder

OTHER = "HUB_LLMCOMPRESSOR_PYTHON"
"""Environment variable with the Python of an environment that has llmcompressor."""


def asked(path: str = "rows.jsonl", **export) -> SimpleNamespace:
    return SimpleNamespace(export=ExportConfig(to=["compressed"], **export), data=DataConfig(path=path))


def script(folder: Path, text: str) -> str:
    """A program that stands for the Python of another environment."""
    file = folder / "python"
    file.write_text(f"#!{sys.executable}\n{text}\n")
    file.chmod(0o755)
    return str(file)


@pytest.mark.parametrize(
    ("versions", "line"),
    [
        ({"llmcompressor": "0.14.0.1", "torch": "2.13.0"}, None),
        ({"torch": "2.13.0"}, "has no llmcompressor. Type: {python} -m pip install llmcompressor"),
        ({"llmcompressor": "0.9.1"}, "has llmcompressor 0.9.1, and 0.14 or newer is needed"),
    ],
)
def test_the_other_python_is_asked_for_llmcompressor(tmp_path, versions, line):
    python = script(tmp_path, f"print({json.dumps(versions)!r})")
    found = list(problems(asked(python=python)))
    assert found == [] if line is None else len(found) == 1 and line.format(python=python) in found[0]


def test_a_wrong_python_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    (tmp_path / "text").touch()
    for python, line in (
        (tmp_path, f"this is a folder. Type python={tmp_path}/bin/python"),
        (tmp_path / "none", "there is no such file"),
        (tmp_path / "text", "this can't be run"),
        (script(tmp_path, "raise SystemExit(1)"), "this is no Python that works"),
    ):
        assert line in str(interpreter.problem_of_python(str(python)))
    monkeypatch.setattr(interpreter, "PACKAGES", ("no-such-package",))
    here = interpreter.problem_of_python(None)
    assert here is not None
    assert "python3 -m venv ~/llmcompressor && ~/llmcompressor/bin/pip install llmcompressor, and then python=" in here


def test_calibration_needs_rows(monkeypatch):
    monkeypatch.setattr("hub.tasks.export.compressed.exporter.problem_of_python", lambda python: None)
    (line,) = problems(asked(path=""))
    assert "scheme=w4a16 is calibrated on training rows" in line
    assert list(problems(asked(path="", scheme=["w8a8_fp8"]))) == []
    (line,) = problems(asked(scheme=["w8a8_fp8", "w8a8_fp8"]))
    assert "twice" in line


def meta(name: str, loader=AutoModelForCausalLM):
    folder = zoo_model(name)  # before, since it may have to be made
    with torch.device("meta"):
        return loader.from_config(AutoConfig.from_pretrained(folder))


@pytest.mark.parametrize(
    ("name", "loader", "compressed", "kept"),
    [
        ("qwen2_moe", AutoModelForCausalLM, {"q_proj", "down_proj"}, {"lm_head", "shared_expert_gate"}),
        ("qwen3_next", AutoModelForCausalLM, {"q_proj", "down_proj"}, {"lm_head", "in_proj_ba", "out_proj"}),
        ("gemma3", AutoModelForImageTextToText, {"q_proj", "gate_proj"}, {"lm_head", "fc1", "out_proj"}),
        ("gpt2", AutoModelForCausalLM, set(), {"lm_head"}),
    ],
)
def test_heads_routers_states_and_towers_stay(name, loader, compressed, kept):
    found = layers_to_compress(meta(name, loader))
    parts = [{name.split(".")[-1] for name in names} for names in found]
    assert compressed <= parts[0]
    assert kept <= parts[1]
    assert not any("vision" in one or "linear_attn" in one or one.endswith("lm_head") for one in found[0])
    assert all(".layers." in one for one in found[0])


def test_the_largest_group_that_divides_all_widths():
    assert group_size({"a": 4096, "b": 14336}) == 128
    assert group_size({"a": 576, "b": 1536}) == 64
    with pytest.raises(RefusedError, match=r"none of these divides the 100 inputs of b\. Type scheme=w8a8_fp8"):
        group_size({"a": 128, "b": 100})


def test_experts_that_are_not_found_again_are_refused():
    layers, stored = ["a.experts.0.up_proj", "a.q_proj"], ["a.experts.0.up_proj.weight", "a.q_proj.weight"]
    refuse_experts("w4a16", "Model", layers, stored)
    refuse_experts("w8a8_int8", "Model", ["a.q_proj"], stored)
    with pytest.raises(RefusedError, match=r"does not read experts in 8-bit integers.*Type scheme=w8a8_fp8"):
        refuse_experts("w8a8_int8", "Model", layers, stored)
    with pytest.raises(RefusedError, match=r"stores its experts as a\.experts\.gate_up, and .* write a\.experts\.0\.up_proj"):
        refuse_experts("w4a16", "Model", layers, ["a.experts.gate_up"])


def test_all_files_and_all_tensors_are_carried_over(tmp_path):
    source, made = tmp_path / ".cache" / "source", tmp_path / "made"
    shutil.copytree(zoo_model("llama_tied"), source)
    (source / "generation_config.json").write_text('{"top_k": 7}')
    tensors = load_file(source / "model.safetensors")
    save_file(tensors | {"mtp.weight": torch.ones(2)}, source / "model.safetensors")
    made.mkdir()
    first = next(name for name in tensors if name.endswith("q_proj.weight"))
    packed = {name: tensor for name, tensor in tensors.items() if name != first}
    packed |= {f"{first}_packed": torch.zeros(2), f"{first}_scale": torch.zeros(2), f"{first}_shape": torch.zeros(2)}
    save_file(packed, made / "model.safetensors")
    (made / "config.json").write_text(json.dumps({"quantization_config": {"format": "pack-quantized"}, "vocab_size": 1}))
    (made / "recipe.yaml").touch()

    complete(source, made)

    config = json.loads((source / "config.json").read_text())
    assert json.loads((made / "config.json").read_text()) == config | {"quantization_config": {"format": "pack-quantized"}}
    assert {file.name for file in made.iterdir()} - {file.name for file in source.iterdir()} == {
        "model.safetensors.index.json",
        "model-compressed.safetensors",
        "model-carried.safetensors",
    }
    assert (made / "generation_config.json").read_text() == '{"top_k": 7}'
    index = json.loads((made / "model.safetensors.index.json").read_text())["weight_map"]
    assert index["mtp.weight"] == "model-carried.safetensors"
    assert index.keys() == packed.keys() | {"mtp.weight"}


def test_the_reader_is_the_model(tmp_path):
    """The server and its client in one process: what it says is what the model says here."""
    folder = zoo_model("llama_tied")
    model, tokenizer = read_model.load(folder, False)
    (ask_out, ask_in), (answer_out, answer_in) = os.pipe(), os.pipe()
    questions, answers = os.fdopen(ask_in, "w"), os.fdopen(answer_out)
    there, back = os.fdopen(ask_out), os.fdopen(answer_in, "w")
    back.write(json.dumps(read_model.facts(model, tokenizer)) + "\n")
    back.flush()
    server = threading.Thread(target=read_model.serve, args=(there, back, model, tokenizer, tmp_path), daemon=True)
    server.start()
    remote = reader.RemoteReader(questions, answers, folder)
    ids = [5, 9, 11, 40]
    with open_folder(folder) as here:
        assert torch.allclose(remote.logits(ids), here.logits(ids), atol=1e-5)
        states = list(zip(remote.hidden(ids), here.hidden(ids), strict=True))
        assert all(torch.allclose(one, other, atol=1e-5) for one, other in states)
        assert remote.tokens("Name a color.") == here.tokens("Name a color.")
        assert remote.template == here.template
        assert remote.ends == here.ends
    with pytest.raises(ModelError, match=r"can't be read again: \w+Error"):
        remote.logits(["no token"])
    questions.close()
    server.join()
    assert list(tmp_path.iterdir()) == []


def follow(text: str) -> tuple:
    said = []
    return (*write._follow(io.StringIO(text), said.append), said)


def test_lines_of_the_script():
    steps = "".join(f"({i}/31): Calibrating: 50%\n" for i in range(1, 32))
    found, refused, _, said = follow(f"noise\nhub-say: 14 layers\n{steps}" + 'hub-done: {"compressed": 14}\n')
    assert found == {"compressed": 14}
    assert refused is None
    assert said[0] == "14 layers"
    assert said[-1] == "calibrated 31 of 31 parts"
    assert len(said) == 11


def test_a_failure_is_one_line(tmp_path):
    def run(text: str) -> None:
        write.run(script(tmp_path, text), {"scheme": "w4a16"}, tmp_path / "task.json", lambda line: None)

    with pytest.raises(ModelError, match=r"^compressed w4a16: no layers$"):
        run("print('hub-refuse: no layers'); raise SystemExit(2)")
    with pytest.raises(ModelError, match=r"ended by signal 9\. Is there enough memory\?"):
        run("import os; os.kill(os.getpid(), 9)")
    with pytest.raises(OSError, match="No space left"):
        run("print('hub-refuse: OSError: [Errno 28] No space left on device'); raise SystemExit(2)")
    assert not (tmp_path / "task.json").exists()


@pytest.mark.skipif(OTHER not in os.environ, reason=f"{OTHER} names no Python that has llmcompressor")
@pytest.mark.parametrize(("name", "scheme"), [("qwen3_moe", "w4a16"), ("qwen3_moe", "w8a8_fp8"), ("llama_tied", "w8a8_int8")])
def test_it_is_made_and_read_in_the_other_environment(tmp_path, name, scheme):
    python, source = os.environ[OTHER], zoo_model(name)
    rows = [] if scheme == "w8a8_fp8" else [list(range(5, 29)), list(range(30, 60))]
    task = {"model": str(source), "out": str(tmp_path / scheme), "scheme": scheme, "rows": rows, "trust_remote_code": False}
    found = write.run(python, task, tmp_path / "task.json", lambda line: None)
    assert found["kept"] == ["lm_head"]
    config = json.loads((tmp_path / scheme / "config.json").read_text())["quantization_config"]
    gates = {"model.layers.0.mlp.gate"} if name == "qwen3_moe" else set()
    assert {"lm_head"} | gates <= set(config["ignore"])
    ids = list(range(40, 56))
    with open_folder(source) as here, reader.open_compressed(tmp_path / scheme, python) as there:
        assert "with compressed-tensors" in there.name
        tuned, other = (torch.log_softmax(one.logits(ids), -1) for one in (here, there))
        assert there.template == here.template
    divergence = float((tuned.exp() * (tuned - other)).sum(-1).mean())
    assert 0 < divergence < (0.1 if scheme == "w4a16" else 0.02)
