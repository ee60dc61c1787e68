"""A converted file is the model: its logits by llama.cpp, its tokens, its template. What differs is named."""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("gguf", reason="needs the package gguf")
pytest.importorskip("sentencepiece", reason="needs the package sentencepiece")

from tasks.export.gguf import llama_cpp, small, synthetic
from transformers import AutoTokenizer, LlamaConfig, MixtralConfig

from hub.errors import ConfigError, HubError, ModelError
from hub.tasks.export.gguf import converter
from hub.tasks.export.gguf.check import differences, notes
from hub.tasks.export.gguf.completed import completed
from hub.tasks.export.gguf.container import read_container
from hub.tasks.export.gguf.kinds import KINDS
from hub.tasks.export.gguf.limits import limits
from hub.tasks.export.gguf.reader import LlamaReader, TransformersReader, open_reader

try:
    converter.converter_script()
except ModelError as error:
    pytest.skip(str(error), allow_module_level=True)

IDS = [1, 5, 300, 44, 97, 200, 33, 410, 3, 77] * 3
CHAT = [{"role": "user", "content": "Hello  there, 12 é?"}, {"role": "assistant", "content": "Yes\n"}]


@dataclass
class Made:
    folder: Path
    file: Path
    model: Any
    tokenizer: Any

    @property
    def chat(self) -> str:
        return self.tokenizer.apply_chat_template(CHAT, tokenize=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("model")
    small.write_tokenizer(folder)
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config = LlamaConfig(vocab_size=small.VOCAB, bos_token_id=1, eos_token_id=4, max_position_embeddings=2048, **sizes)
    model = small.write_model(folder, config)
    (folder / "evil.py").write_text("raise SystemExit('code of the folder was run')", encoding="utf-8")
    written = (folder / "config.json").read_text(encoding="utf-8")
    (folder / "config.json").write_text(written.replace("{", '{"auto_map": {"AutoTokenizer": "evil.It"},', 1), encoding="utf-8")
    file = folder / "made.gguf"
    converter.convert(folder, file, KINDS["f32"], "made-up model", adds_bos=False)
    return Made(folder, file, model, AutoTokenizer.from_pretrained(folder))


@pytest.fixture(params=["llama.cpp", "transformers"])
def reader_of(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    opened: list[Any] = []
    if request.param == "llama.cpp":
        from hub.tasks.export.gguf.reader import llama_library

        if llama_library() is None and llama_cpp.library() is None:
            pytest.skip("needs the package xllamacpp, or LLAMA_LIB=FILE")
        if llama_library() is None:
            monkeypatch.setenv("LLAMA_LIB", str(llama_cpp.library()))

    def make(file: Path) -> Any:
        opened.append(open_reader(file, 1) if request.param == "llama.cpp" else TransformersReader(file))
        return opened[-1]

    yield make
    for reader in opened:
        reader.close()


def divergence(model: Any, ids: list[int], logits: torch.Tensor) -> float:
    with torch.no_grad():
        expected = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
    return float((expected.exp() * (expected - torch.log_softmax(logits, -1))).sum(-1).mean())


def test_file_is_the_model(made: Made, reader_of: Any) -> None:
    reader = reader_of(made.file)
    long = (IDS * 40)[:1100]  # three batches
    for ids in (long, IDS):  # the second one shows that nothing of the first is left
        logits = reader.logits(ids)
        assert logits.shape == (len(ids), small.VOCAB)
        assert divergence(made.model, ids, logits) < 1e-5
    assert differences(reader, made.tokenizer, [made.chat], ends=[4]) == []
    assert notes(reader, made.tokenizer, [made.chat]) == []
    greedy = made.model.generate(torch.tensor([IDS]), max_new_tokens=6, do_sample=False, eos_token_id=4, pad_token_id=0)
    assert reader.generate(IDS, 6) == greedy[0, len(IDS) :].tolist()
    assert reader.is_llama_cpp == isinstance(reader, LlamaReader)


def test_file_tells_nothing_of_this_machine(made: Made) -> None:
    container = read_container(made.file)
    assert container.value("general.name") == "made-up model"
    general = " ".join(str(container.value(key)) for key in container.metadata if not key.startswith("tokenizer."))
    assert not any(
        word in general for word in (str(made.folder.parent), made.folder.name, "tmp", os.environ.get("USER", "root"))
    )
    assert [file.name for file in made.folder.glob(".*")] == []


def test_each_difference_is_named(made: Made, reader_of: Any, tmp_path: Path) -> None:
    def said(**changed: Any) -> list[str]:
        reader = reader_of(small.with_metadata(made.file, tmp_path / "changed.gguf", **changed))
        return differences(reader, made.tokenizer, [made.chat], ends=[4])

    (line,) = said(tokenizer__ggml__add_bos_token=True)
    assert "begin token 1" in line
    assert "add_bos_token=true" in line
    (line,) = said(tokenizer__chat_template=small.TEMPLATE.replace("im_start", "start"))
    assert "chat template differs from character" in line
    lines = said(tokenizer__ggml__eos_token_id=2)
    assert "end token is 2 ('</s>') in the file, and 4 ('<|im_end|>')" in lines[0]


def test_two_begin_tokens_are_noted(made: Made, reader_of: Any, tmp_path: Path) -> None:
    reader = reader_of(small.with_metadata(made.file, tmp_path / "changed.gguf", tokenizer__ggml__add_bos_token=True))
    chat = "<s>" + made.chat
    assert differences(reader, made.tokenizer, [chat], texts=()) == []
    assert "gives the model two" in notes(reader, made.tokenizer, [chat])[0]


def test_file_that_llama_cpp_refuses_is_one_line(made: Made, reader_of: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        reader_of(small.with_metadata(made.file, tmp_path / "changed.gguf", general__architecture="nonesuch"))
    assert str(caught.value).startswith("changed.gguf")
    assert "nonesuch" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_crash_of_native_code_is_one_line(made: Made, reader_of: Any) -> None:
    reader = reader_of(made.file)
    if not reader.is_llama_cpp:
        with pytest.raises(IndexError):
            reader.logits([small.VOCAB])
        return
    with pytest.raises(ModelError, match="token 420 is none of the 420"):
        reader.logits([small.VOCAB])
    assert reader.logits([1]).shape == (1, small.VOCAB)
    reader._child.kill()
    with pytest.raises(
        ModelError, match=r"^made.gguf: llama.cpp broke off with code -9 while it read the file: it said nothing$"
    ):
        reader.logits([1])


def test_what_the_converter_says_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, checkout = tmp_path / "model", tmp_path / "llama.cpp"
    model.mkdir()
    checkout.mkdir()
    monkeypatch.setenv("LLAMA_CPP_DIR", str(checkout))
    with pytest.raises(ModelError, match=r"LLAMA_CPP_DIR=.* has no convert_hf_to_gguf.py"):
        converter.converter_script()

    (model / "evil.py").touch()
    config = {"auto_map": {"AutoConfig": "evil.It"}, "n_positions": 7, "rope_parameters": {"rope_theta": 1e4}}
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    source = "import json, pathlib, sys\nfor file in pathlib.Path(sys.argv[1]).iterdir(): sys.stderr.write(file.read_text())"
    (checkout / converter.SCRIPT).write_text(source, encoding="utf-8")
    with pytest.raises(ModelError, match=r"^(?!.*evil).*n_ctx\W+7.*rotary_pct\W+1.0"):
        converter.convert(model, tmp_path / "made.gguf", KINDS["f16"], "name")

    (checkout / "beside.py").touch()
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # as in a worker: the converter finds its modules all the same

    def says(words: str, code: int = 1, kind: type[HubError] = ModelError) -> str:
        head = "import os, sys\nimport beside\nassert os.environ['HF_HUB_OFFLINE'] == '1'\n"
        source = f"{head}sys.stderr.write({words!r})\nsys.exit({code})"
        (checkout / converter.SCRIPT).write_text(source, encoding="utf-8")
        with pytest.raises(kind) as caught:
            converter.convert(model, tmp_path / "made.gguf", KINDS["f16"], "name")
        assert [file.name for file in tmp_path.iterdir() if file.name not in ("model", "llama.cpp")] == []
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "architecture XForCausalLM. Take to=merged, a newer" in says(
        "ERROR:hf-to-gguf:Model XForCausalLM is not supported\n"
    )
    assert "does not recognize this model's tokenizer" in says(
        "NotImplementedError: BPE pre-tokenizer was not recognized - update\n"
    )
    line = says("INFO\nFileNotFoundError: File not found: /some/where/tokenizer.model\n")
    assert "needs tokenizer.model for this model" in line
    assert "/some/where" not in line
    assert "needs tokenizer.model for this model" in says("ValueError: Error: Missing tokenizer.model\n")
    assert "AssertionError at assert x == 1" in says("  assert x == 1\n         ^^^^^^\nAssertionError\n")
    assert "Type: pip install tiktoken" in says("ModuleNotFoundError: No module named 'tiktoken'\n")
    assert "no place for the tensor model.x" in says("ValueError: Can not map tensor 'model.x'\n")
    assert "failed with code 3: KeyError: 'x'. Take to=merged" in says("KeyError: 'x'\n", 3)
    assert "failed with code 0" in says("", 0)
    bar = "\nWriting:  74%|███████▎  | 208k/282k [00:03<00:01, 57.6kbyte/s]\n"
    assert "failed with code 1: KeyError: 'x'. Take" in says(f"KeyError: 'x'{bar}")
    full = "made.gguf needs 0.0 MiB, and"
    assert full in says(f"OSError: 16384 requested and 12448 written{bar}", kind=ConfigError)  # NumPy's words for a full disk
    assert full in says(f"OSError: [Errno 28] No space left on device{bar}", kind=ConfigError)


def test_importance_is_the_mean_square_of_each_channel(made: Made) -> None:
    pytest.importorskip("libggml", reason="needs the package libggml-python")
    from hub.tasks.export.gguf.ggml import quantize_rows
    from hub.tasks.export.gguf.imatrix import collect, importance_of_file
    from hub.tasks.export.gguf.kinds import TensorType

    rows, seen = [IDS, IDS[3:17]], []
    layer = made.model.model.layers[1].self_attn.o_proj
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    importance = importance_of_file(collect(made.model, rows), made.file)
    handle.remove()
    expected = torch.cat(seen).square().mean(0)
    assert importance.missing == ()
    assert importance.num_tokens == 44
    assert len(importance.by_tensor) == 14
    found = torch.from_numpy(importance.by_tensor["blk.1.attn_output.weight"])
    assert torch.allclose(found, expected, rtol=1e-5)
    weights, errors = layer.weight.detach(), []
    import gguf

    for matrix in (None, found.numpy()):
        stored = quantize_rows(weights.numpy(), TensorType.Q4_0, matrix)
        assert stored is not None
        back = torch.from_numpy(gguf.quants.dequantize(stored.reshape(64, -1), gguf.GGMLQuantizationType.Q4_0).copy())
        errors.append(float(((back - weights).square() * expected).sum()))
    assert errors[1] < 0.97 * errors[0]


def test_importance_of_each_expert(tmp_path: Path) -> None:
    from hub.tasks.export.gguf.imatrix import collect

    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    config = MixtralConfig(vocab_size=small.VOCAB, num_local_experts=4, num_experts_per_tok=2, **sizes)
    model = small.write_model(tmp_path, config)
    experts, seen = model.model.layers[0].mlp.experts, []
    handle = experts.register_forward_pre_hook(lambda _, args: seen.append(args))
    collected = collect(model, [IDS])
    handle.remove()
    states, chosen = seen[0][0].reshape(-1, 32), seen[0][1]
    name = "model.layers.0.mlp.experts."
    for expert in range(4):
        inputs = states[(chosen == expert).any(-1)]
        if not len(inputs):
            assert (name + "gate_up_proj", expert) not in collected.channels
            continue
        channels = collected.channels[name + "gate_up_proj", expert]
        assert channels.num_tokens == len(inputs)
        assert torch.allclose(channels.squares, inputs.square().sum(0), rtol=1e-4)
        gate, up = (inputs @ experts.gate_up_proj[expert].T).chunk(2, -1)
        inner = torch.nn.functional.silu(gate) * up
        assert torch.allclose(collected.channels[name + "down_proj", expert].squares, inner.square().sum(0), rtol=1e-3)


def test_importance_follows_the_order_of_the_file(tmp_path: Path) -> None:
    import gguf

    from hub.tasks.export.gguf.imatrix import Collected, _Channels, importance_of_file

    file = tmp_path / "experts.gguf"
    synthetic.write(file, layers=1, width=64, experts=4, matrices=synthetic.EXPERTS)
    stored = {tensor.name: torch.from_numpy(tensor.data.astype("f8")) for tensor in gguf.GGUFReader(file).tensors}
    output, down = stored["blk.0.attn_output.weight"].square().sum(0), stored["blk.0.ffn_down_exps.weight"][2].square().sum(0)
    experts, attention = (
        "model.layers.0.mlp.experts.down_proj",
        "base_model.model.model.layers.0.self_attn.o_proj.base_layer.weight",
    )
    for shift in (0, 1):  # with 1 the file has the channels of the attention in another order than the model
        collected = Collected(num_experts={experts: 4, attention: 1}, num_tokens=3)
        collected.channels[experts, 2] = _Channels(3 * torch.arange(64.0), down, 3)
        collected.channels[attention, 0] = _Channels(torch.ones(64), output.roll(shift), 3)
        importance = importance_of_file(collected, file)
        assert ("blk.0.attn_output.weight" in importance.missing) == bool(shift)
        found = torch.from_numpy(importance.by_tensor["blk.0.ffn_down_exps.weight"]).view(4, 64)
        assert torch.equal(found[2], torch.arange(64.0))
        assert bool((found[[0, 1, 3]] == 1).all())  # no token reached these experts


def test_what_the_converter_leaves_out_is_said(tmp_path: Path) -> None:
    import gguf

    made, window = tmp_path / "made.gguf", "gemma3.attention.sliding_window_pattern"
    synthetic.write(made, "gemma3", layers=1)
    assert completed(made, {}, adds_space=False) == made, "its vocabulary is not one of SentencePiece"
    assert completed(made, {"layer_types": ["sliding_attention"] * 5 + ["full_attention"]}, None) == made
    said = small.with_metadata(made, tmp_path / "said.gguf", tokenizer__ggml__model="llama")
    changed = completed(said, {"layer_types": ["sliding_attention", "full_attention"] * 2}, adds_space=False)
    assert read_container(changed).value("tokenizer.ggml.add_space_prefix") is False
    assert read_container(changed).value(window) == 2
    assert completed(changed, {"layer_types": ["sliding_attention", "full_attention"] * 2}, adds_space=False) == changed
    synthetic.write(tmp_path / "cut.gguf", "deepseek2", layers=2)
    assert read_container(completed(tmp_path / "cut.gguf", {}, None)).value("deepseek2.attention.q_lora_rank") == 0
    synthetic.write(tmp_path / "long.gguf", layers=1)
    rope = {"rope_type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0]}
    long = completed(
        tmp_path / "long.gguf",
        {"rope_parameters": rope, "original_max_position_embeddings": 64, "max_position_embeddings": 4096},
        None,
    )
    *_, factors, short = gguf.GGUFReader(long).tensors
    assert (factors.name, [*factors.data]) == ("rope_factors_long.weight", [2.0, 3.0])
    assert (short.name, [*short.data]) == ("rope_factors_short.weight", [1.0, 1.5])
    assert read_container(long).value("llama.rope.scaling.attn_factor") == pytest.approx(math.sqrt(2))
    for before, after in ((made, changed), (tmp_path / "long.gguf", long)):
        for one, other in zip(gguf.GGUFReader(before).tensors, gguf.GGUFReader(after).tensors, strict=False):
            assert one.name == other.name
            assert (one.data == other.data).all()


def test_what_llama_cpp_does_otherwise_is_noted() -> None:
    phi3 = {"model_type": "phi3", "sliding_window": 2047, "max_position_embeddings": 4096}
    assert "leaves out this model's sliding window of 2,047 tokens" in limits(phi3)[0]
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 4096}
    (line,) = limits(phi3 | {"sliding_window": 262144, "max_position_embeddings": 131072, "rope_parameters": rope})
    assert "set the context to 4,096 (-c 4096, Ollama: num_ctx 4096)" in line
    assert "Take to=merged" in limits({"model_type": "gemma2", "tie_word_embeddings": False})[0]
    assert not limits({"model_type": "gemma2", "head_dim": 256, "query_pre_attn_scalar": 256})
    assert "by the width of a head" in limits({"model_type": "gemma2", "head_dim": 256, "query_pre_attn_scalar": 144})[0]
    assert not limits(phi3 | {"model_type": "mistral"})
