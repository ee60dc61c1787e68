"""Adapters merged into stored weights, compared with PEFT's own merge and with the model that has the adapter on."""

import copy
import errno
import json
import shutil
from unittest.mock import Mock

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from zoo.zoo import zoo_model

from hub.config.schema import ModelConfig
from hub.errors import ConfigError, ModelError
from hub.models.load import load_causal_lm, load_config
from hub.models.loading_report import without_data
from hub.models.merging import beside, loaded, merge, shards
from hub.models.merging.names import StoredNames
from hub.models.merging.quantized import as_trained
from hub.models.merging.stored import StoredWeights
from hub.models.merging.work import Work
from hub.models.structure import expert_tensors, linear_layers
from hub.models.tokens import add_tokens, resize_embeddings, vocabulary_of

IDS = torch.arange(5, 25)[None]


def plain(folder, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS, use_cache=False).logits


def adapter(folder, model, **options):
    """An adapter with random values, saved by PEFT. Returns the model with it on."""
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=5, **options)).eval()
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return adapted


def merged(base, folder, out, dtype=None, **options):
    lines = []
    result = merge(base, folder, out, dtype, lines.append, model=options.pop("model", ModelConfig(path=str(base))), **options)
    return result, lines


def options_of(kind, model):
    layers = linear_layers(model)
    conv1d = type(model.get_submodule(layers[0])).__name__ == "Conv1D"
    embeddings = next(name for name, module in model.named_modules() if module is model.get_input_embeddings())
    return {
        "linear": {"target_modules": layers, "fan_in_fan_out": conv1d, "use_rslora": True, "alpha_pattern": {layers[0]: 2}},
        "dora": {"target_modules": layers, "fan_in_fan_out": conv1d, "use_dora": True, "rank_pattern": {layers[-1]: 2}},
        "biases": {"target_modules": layers, "fan_in_fan_out": conv1d, "bias": "all"},
        "experts": {"target_modules": [], "target_parameters": [".".join(tensor) for tensor in expert_tensors(model)]},
        "embeddings": {"target_modules": [embeddings]},
        "whole": {"target_modules": layers[:1], "modules_to_save": ["lm_head"], "fan_in_fan_out": conv1d},
    }[kind]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("llama", "linear"), ("gpt2", "dora"), ("phi", "biases"), ("mixtral", "experts"), ("gpt_oss", "experts"),
        ("granitemoe", "experts"), ("llama_tied", "embeddings"), ("llama_tied", "whole"), ("qwen2_moe", "dora"),
    ],
)  # fmt: skip
def test_a_merged_folder_is_the_model_with_its_adapter_on(tmp_path, name, kind):
    base = zoo_model(name)
    model = plain(base)
    before, adapted = logits(model), adapter(tmp_path / "adapter", model, **options_of(kind, model))
    result, lines = merged(base, tmp_path / "adapter", tmp_path / "out")
    after = plain(tmp_path / "out")
    assert (logits(adapted) - before).abs().max() > 0.1
    assert (logits(after) - logits(adapted)).abs().max() < 1e-5
    assert result.by_shard
    assert not lines
    if name == "llama_tied":
        assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    else:  # of tied weights PEFT changes the other use as well
        expected = adapted.double().merge_and_unload().state_dict()
        assert max(float((tensor - expected[n]).abs().max()) for n, tensor in after.double().state_dict().items()) < 1e-6


def test_new_tokens_get_their_rows_and_the_run_its_tokenizer(tmp_path):
    base, cfg = zoo_model("llama_tied"), ModelConfig(path=str(zoo_model("llama_tied")), add_tokens=["<x>", "<y>"])
    tokenizer = AutoTokenizer.from_pretrained(base)
    add_tokens(cfg, tokenizer)
    vocabulary = vocabulary_of(cfg, base, tokenizer)
    start = plain(base)
    resize_embeddings(start, vocabulary, cfg)
    ids = torch.tensor([[5, *vocabulary.new_rows, 6]])
    for rows in (None, {"model.embed_tokens": vocabulary.new_rows}):
        options = {"target_modules": ["q_proj"], "trainable_token_indices": rows}
        adapted = adapter(tmp_path / "adapter", copy.deepcopy(start), **options)
        tokenizer.save_pretrained(tmp_path / "adapter")
        merged(base, tmp_path / "adapter", tmp_path / "out", model=cfg)
        after = plain(tmp_path / "out")
        with torch.no_grad():
            assert torch.allclose(after(ids).logits, adapted(ids).logits, atol=1e-5)
    assert after.config.vocab_size == vocabulary.num_rows == len(after(ids).logits[0, 0])
    assert AutoTokenizer.from_pretrained(tmp_path / "out").convert_tokens_to_ids("<y>") == vocabulary.new_rows[-1]


def test_sums_are_rounded_once_and_the_dtype_is_that_of_the_base_or_as_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "LARGEST_SHARD", 20_000)
    base = tmp_path / "base"
    plain(zoo_model("llama"), torch.bfloat16).save_pretrained(base)
    exact = adapter(tmp_path / "adapter", plain(base), target_modules="all-linear").double().merge_and_unload().state_dict()
    for asked, expected in ((None, torch.bfloat16), (torch.float16, torch.float16), (torch.float32, torch.float32)):
        merged(base, tmp_path / "adapter", tmp_path / "out", asked)
        assert len(list((tmp_path / "out").glob("*.safetensors"))) > 3
        after = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
        assert after.dtype == expected
        for name, tensor in after.state_dict().items():
            step = torch.finfo(expected).eps * exact[name].abs() + 1e-6
            error = (tensor.double() - exact[name]) / step
            assert (error.abs() <= 1).all(), name
            assert error.mean().abs() <= 3 / error.numel() ** 0.5, f"{name} is rounded in one direction"


def test_a_whole_model_keeps_what_transformers_keeps_in_float32(tmp_path):
    base = zoo_model("deepseek_v3")
    merged(base, None, tmp_path / "out", torch.bfloat16)
    plain(base, torch.bfloat16).save_pretrained(tmp_path / "expected")
    found, expected = load_file(tmp_path / "out" / "model.safetensors"), load_file(tmp_path / "expected" / "model.safetensors")
    assert {str(tensor.dtype) for tensor in found.values()} == {"torch.float32", "torch.bfloat16"}
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) and tensor.dtype == expected[name].dtype for name, tensor in found.items())


def test_names_of_a_wrapper_are_gone(tmp_path):
    base = tmp_path / "base"
    shutil.copytree(zoo_model("llama"), base)
    tensors = load_file(base / "model.safetensors")
    save_file({f"_orig_mod.{name}": tensor for name, tensor in tensors.items()}, base / "model.safetensors", {"format": "pt"})
    adapted = adapter(tmp_path / "adapter", plain(zoo_model("llama")), target_modules=["q_proj"])
    result, _ = merged(base, tmp_path / "adapter", tmp_path / "out")
    assert result.by_shard
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == tensors.keys()
    assert torch.allclose(logits(plain(tmp_path / "out")), logits(adapted), atol=1e-5)


def test_experts_that_are_stored_one_by_one_are_merged_so():
    cfg = ModelConfig(path=str(zoo_model("mixtral")))
    stored = StoredWeights(zoo_model("mixtral"), cfg)
    names = StoredNames(without_data(load_config(cfg, zoo_model("mixtral")), stored.tensors), stored.tensors)
    group = names.group("model.layers.0.mlp.experts.gate_up_proj")
    assert (group.num_experts, len(group.stored)) == (4, 8)
    assert names.group("model.layers.0.self_attn.q_proj.weight").is_plain


def test_what_only_peft_can_merge_is_merged_by_peft_and_logged(tmp_path):
    model = plain(zoo_model("llama_tied"))
    adapted = adapter(tmp_path / "adapter", model, target_modules=["q_proj"], init_lora_weights="olora")
    result, lines = merged(zoo_model("llama_tied"), tmp_path / "adapter", tmp_path / "out")
    assert not result.by_shard
    assert "loaded in float32" in lines[0]
    assert "olora" in lines[0]
    assert torch.allclose(logits(plain(tmp_path / "out")), logits(adapted), atol=1e-5)
    loaded_config, base_config = ((f / "config.json").read_text() for f in (tmp_path / "out", zoo_model("llama_tied")))
    assert json.loads(loaded_config) == json.loads(base_config)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda t, n: t | {n.replace("layers.0", "layers.9"): t[n].clone()}, "layers.9"),
        (lambda t, n: {name: tensor for name, tensor in t.items() if name != n}, "q_proj"),
        (lambda t, n: t | {n: t[n][:, :3].contiguous()}, "does not fit its base"),
        (lambda t, n: t | {n: t[n] * float("nan")}, "not finite"),
        (lambda t, n: {k.replace("q_proj", "x_proj"): v for k, v in t.items()}, "x_proj"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(tmp_path, change, line):
    adapter(tmp_path / "adapter", plain(zoo_model("llama")), target_modules=["q_proj"])
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in sorted(tensors) if "layers.0" in name and "lora_A" in name)
    save_file(change(tensors, name), file)
    with pytest.raises(ModelError, match=line):
        merged(zoo_model("llama"), tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_weight_that_should_change_and_does_not_is_an_error(tmp_path, monkeypatch):
    adapter(tmp_path / "adapter", plain(zoo_model("llama")), target_modules=["q_proj"])
    monkeypatch.setattr("hub.models.merging.changes.Added.apply", lambda change, weight: weight)
    with pytest.raises(ModelError, match=r"q_proj.weight is as in the base"):
        merged(zoo_model("llama"), tmp_path / "adapter", tmp_path / "out")


def test_steps_below_the_rounding_are_counted(tmp_path):
    base = tmp_path / "base"
    plain(zoo_model("llama"), torch.bfloat16).save_pretrained(base)
    adapter(tmp_path / "adapter", plain(base), target_modules=["q_proj"])
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: tensor * 1e-3 for name, tensor in load_file(file).items()}, file)
    weights = load_file(base / "model.safetensors")
    save_file(
        {n: torch.ones_like(t) if "q_proj" in n else t for n, t in weights.items()},
        base / "model.safetensors",
        {"format": "pt"},
    )
    result, lines = merged(base, tmp_path / "adapter", tmp_path / "out")
    assert (result.num_changed, result.num_rounded_away) == (0, 2)
    assert "dtype=float32" in lines[-1]


def test_a_value_too_large_for_float16_is_named_and_nothing_is_written(tmp_path):
    base = tmp_path / "base"
    shutil.copytree(zoo_model("llama"), base)
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = -70000.0
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"layers.1.mlp.up_proj.weight: the value 70000 .* dtype=bfloat16"):
        merged(base, None, tmp_path / "out", torch.float16)
    assert [file.name for file in tmp_path.iterdir()] == ["base"]
    assert loaded.too_large("w", 7e4, torch.float16).args


def test_a_full_disk_leaves_nothing_and_tells_how_much_is_needed(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="would be replaced"):
        merged(zoo_model("llama"), None, zoo_model("llama").parent)
    usage = Mock(return_value=Mock(free=1000))
    monkeypatch.setattr("shutil.disk_usage", usage)
    with pytest.raises(ConfigError, match=r"needs 0\.5 MiB, and 0\.0 MiB are free"):
        merged(zoo_model("llama"), None, tmp_path / "out")
    usage.return_value.free = 10**12
    monkeypatch.setattr(shards, "_write_tensor", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(ConfigError, match=r"needs 0\.5 MiB, and 931\.32 GiB are free"):
        merged(zoo_model("llama"), None, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_files_of_the_base_are_carried_over_and_those_of_the_run_lie_over_them(tmp_path):
    base, run = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(zoo_model("llama"), base)
    adapter(run, plain(base), target_modules=["q_proj"])
    carried = [
        "tokenizer.model",
        "generation_config.json",
        "preprocessor_config.json",
        "LICENSE",
        "merges.txt",
        "modeling_own.py",
    ]
    gone = [
        "pytorch_model.bin",
        "model.gguf",
        "README.md",
        ".gitattributes",
        "optimizer.pt",
        "consolidated.00.pth",
        "chat_template.json",
    ]
    for name in carried + gone:
        (base / name).write_text("{}")
    (base / "special_tokens_map.json").write_text('{"eos_token": "<other>"}')
    config = json.loads((base / "config.json").read_text())
    config |= {
        "_name_or_path": str(base),
        "quantization_config": {},
        "torch_dtype": "float32",
        "own": {"path": f"{base}/x", "a": 1},
    }
    (base / "config.json").write_text(json.dumps(config))
    AutoTokenizer.from_pretrained(zoo_model("llama")).save_pretrained(run)
    (run / "chat_template.jinja").write_text("{{ 'of the run' }}")
    merged(base, run, tmp_path / "out", torch.bfloat16)
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names >= set(carried)
    assert not names & {*gone, "special_tokens_map.json", "adapter_config.json"}
    assert "of the run" in (tmp_path / "out" / "chat_template.jinja").read_text()
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["own"] == {"a": 1}
    assert written["torch_dtype"] == written.get("dtype", "bfloat16") == "bfloat16"
    assert not written.keys() & {"_name_or_path", "quantization_config"}
    assert all(str(tmp_path) not in file.read_text() for file in (tmp_path / "out").glob("*.json"))


def test_over_the_weights_that_training_in_four_bits_saw(tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    base = zoo_model("llama")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    cfg = ModelConfig(path=str(base), dtype="float32")
    seen = load_causal_lm(cfg, base, "cpu", torch.float32, config).eval()
    seen.save_pretrained(tmp_path / "packed")
    adapter(tmp_path / "adapter", plain(base), target_modules="all-linear")
    expected = logits(PeftModel.from_pretrained(seen, tmp_path / "adapter"))
    merged(base, tmp_path / "adapter", tmp_path / "seen", model=cfg, dequantized="nf4")
    merged(base, tmp_path / "adapter", tmp_path / "stored", model=cfg)
    near, far = ((logits(plain(tmp_path / name)) - expected).abs().max() for name in ("seen", "stored"))
    assert near < 1e-4 < 1e-2 < far
    in_8bit, weight = bitsandbytes.nn.Linear8bitLt(64, 32, bias=False, has_fp16_weights=False), torch.randn(32, 64)
    in_8bit.weight = bitsandbytes.nn.Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False)
    held = in_8bit.to("cpu").weight
    assert torch.allclose(as_trained(weight, "int8", torch.float32), held * held.SCB[:, None] / 127, atol=1e-6)
    # A base that is stored in 4 bits has no other weights.
    result, _ = merged(tmp_path / "packed", tmp_path / "adapter", tmp_path / "of_packed", torch.float32)
    assert (logits(plain(tmp_path / "of_packed")) - expected).abs().max() < 1e-2
    assert "quantization_config" not in json.loads((tmp_path / "of_packed" / "config.json").read_text())
    assert result.dtype == torch.float32


def test_more_tensors_or_others_than_planned_are_refused(tmp_path):
    work = Work({"a": shards.Planned(torch.float32, (2,))}, [lambda: iter([("b", torch.zeros(2))])])
    with pytest.raises(ModelError, match="b became"):
        shards.write_shards(tmp_path, work.plan, work.tensors())
    assert beside.edited({"model_type": "x", "dtype": "float16"}, beside.Edits(torch.float32))["dtype"] == "float32"
