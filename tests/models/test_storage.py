"""How weights are stored is read from the folder: algorithms that can't train quantized ones refuse before anything starts."""

import json
import shutil
from pathlib import Path

import pytest

from hub.models import weights
from hub.models.storage import stored_as
from hub.testing import tiny_model

RUN = ("data=tiny", "algo.max_steps=1", "launch.mode=inline", "run_name=r")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "base")


def described(folder: Path, *, text: bool = False, **quantization: object) -> Path:
    """The folder, with this quantization in its config.json."""
    values = json.loads((folder / "config.json").read_text())
    part = values.setdefault("text_config", {}) if text else values
    part["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    ("quantization", "stored"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}, "bnb-4bit"),
        ({"quant_method": "bitsandbytes", "_load_in_8bit": True}, "bnb-8bit"),
        ({"load_in_8bit": True}, "bnb-8bit"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ({"quant_method": "mxfp4"}, None),
        ({}, None),
    ],
)
def test_the_method_is_read_from_the_folder(base, tmp_path, quantization, stored):
    for text in (False, True):
        folder = Path(shutil.copytree(base, tmp_path / f"copy-{text}"))
        assert stored_as(described(folder, text=text, **quantization)) == stored


@pytest.mark.parametrize(
    ("words", "quantization", "line"),
    [
        (
            "algo=sft",
            {"load_in_4bit": True},
            "algo=sft can't train the bnb-4bit weights of model.path={}: quantized weights take",
        ),
        ("algo=osft", {"load_in_8bit": True}, "algo=osft can't train the bnb-8bit weights of model.path={}"),
        (
            "algo=lora_sft",
            {"quant_method": "gptq"},
            "model.path={} is stored as gptq, which can't be trained here. Type model.",
        ),
        ("algo=sft", {"quant_method": "fp8"}, "model.path={} is stored as fp8, which can't be trained here."),
        ("algo=qlora_sft", {"load_in_4bit": True}, "model.path={} is stored as bnb-4bit already."),
        (
            "algo=lora_sft model.quantization=bnb-4bit",
            {},
            "model.quantization=bnb-4bit, but the weights of model.path={} are not",
        ),
    ],
)
def test_a_folder_that_the_algorithm_can_not_train_is_refused_before_a_run_folder(
    base, tmp_path, hub, words, quantization, line
):
    folder = described(Path(shutil.copytree(base, tmp_path / "stored")), **quantization)
    said = hub(*words.split(), f"model.path={folder}", *RUN)
    (problem,) = said.problems
    assert problem.startswith(line.format(folder))
    assert ("algo=lora_sft, or model.path=" in problem) == ("can't train the" in line)
    assert said.code == 2
    assert not (tmp_path / "runs").exists()


def test_a_model_of_the_model_hub_is_refused_when_its_config_is_there(base, tmp_path, hub, monkeypatch):
    folder = described(Path(shutil.copytree(base, tmp_path / "stored")), load_in_4bit=True)
    monkeypatch.setattr(weights, "_from_hub", lambda *given: folder)
    said = hub("algo=sft", "model.path=org/name", *RUN)
    assert said.code == 2
    (problem,) = said.problems
    assert problem.startswith("algo=sft can't train the bnb-4bit weights of model.path=org/name")
    assert "training" not in said.out


@pytest.mark.slow
def test_adapters_train_on_4_and_8_bits(base, tmp_path, hub):
    pytest.importorskip("bitsandbytes")
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    for bits in (4, 8):
        folder = tmp_path / f"in-{bits}"
        how = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
        options = {"dtype": torch.float32, "device_map": "cpu"}
        AutoModelForCausalLM.from_pretrained(base, quantization_config=how, **options).save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(base / name, folder)
        said = hub("algo=lora_sft", f"model.path={folder}", "model.dtype=float32", *RUN[:-1], f"run_name=r{bits}")
        assert said.code == 0, said.err
        assert f"quantization: bnb-{bits}bit" in (tmp_path / "runs" / f"r{bits}" / "run.yaml").read_text()


def test_weights_in_mxfp4_are_dequantized_and_none_may_be_missing(tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    from hub.config.schema import ModelConfig
    from hub.errors import ModelError
    from hub.models.load import check_weights, load_causal_lm

    folder, tensors = tiny_model(tmp_path / "model", "gpt_oss"), {}
    for name, weight in load_file(folder / "model.safetensors").items():
        tensors[name] = weight
        if "experts" in name and not name.endswith("bias"):
            experts, inputs, outputs = tensors.pop(name).shape
            tensors[f"{name}_blocks"] = torch.full((experts, outputs, inputs // 32, 16), 0x22, dtype=torch.uint8)
            tensors[f"{name}_scales"] = torch.full((experts, outputs, inputs // 32), 127, dtype=torch.uint8)
    described(folder, quant_method="mxfp4", modules_to_not_convert=["lm_head", "model.layers.*.self_attn"])
    cfg = ModelConfig(path=str(folder))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert check_weights(cfg, folder) == []
    # 0x22 is two codes 2, the number 1.0; the scale 127 is 2**0 (OCP Microscaling Formats 1.0).
    experts = load_causal_lm(cfg, folder, "cpu", torch.bfloat16).model.layers[1].mlp.experts
    assert torch.equal(experts.down_proj, torch.ones_like(experts.down_proj))
    for part in ("blocks", "scales"):
        del tensors[f"model.layers.1.mlp.experts.down_proj_{part}"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 tensor of the model is missing \(model.layers.1.mlp.experts.down_proj\)"):
        load_causal_lm(cfg, folder, "cpu", torch.bfloat16)
