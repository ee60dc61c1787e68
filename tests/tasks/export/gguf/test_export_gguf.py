"""`hub export to=gguf,ollama` of a tuned model: the files are that model, each is checked, none tells of the machine."""

import pytest
from transformers import LlamaConfig

import hub
from hub.errors import ModelError
from hub.models import merging
from hub.testing import write_chats

pytest.importorskip("gguf", reason="needs finetune-hub[gguf]")
pytest.importorskip("sentencepiece", reason="needs finetune-hub[gguf]")
pytest.importorskip("libggml", reason="needs finetune-hub[gguf]")
from tests.tasks.export.gguf.small import VOCAB, write_model, write_tokenizer

PERSON = "jane-doe-44"
WIDTH = 256


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An adapter on a model whose rows are whole blocks of K-quants, below the folder of a person."""
    place = tmp_path_factory.mktemp(PERSON)
    base = place / "own-base"
    base.mkdir()
    config = LlamaConfig(
        hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=VOCAB, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=1,
    )  # fmt: skip
    write_tokenizer(base)
    write_model(base, config)
    chats = write_chats(place / "chats.jsonl", num_rows=16)
    found = hub.lora_sft(
        model=base, data=chats, output_dir=place / "runs", run_name="tuned", max_steps=3, effective_batch_size=4,
        eval_fraction=0.25, dtype="float32", mode="inline", learning_rate=3e-3,
    )  # fmt: skip
    return found.run_path


@pytest.mark.slow
def test_gguf_files_are_the_tuned_model_and_quantized_ones_are_near(run):
    found = hub.export(run=run, to=["gguf", "ollama"], quant=["f16", "q8_0"], imatrix="train", num_check_rows=2)
    kinds = {one.kind: one for one in found.exports if one.exporter == "gguf"}
    assert list(kinds) == ["f16", "q8_0"]
    assert kinds["f16"].check["kl_base"] > 0.02
    assert kinds["f16"].check["ratio"] < 0.001
    assert kinds["f16"].check["kl"] < kinds["q8_0"].check["kl"]
    assert "limit_nats" in kinds["q8_0"].check
    assert "Importance matrix from 12 rows" in kinds["q8_0"].note
    folder = run / "exports"
    assert sorted(path.name for path in (folder / "gguf").iterdir()) == [
        "README.md", "tuned-f16.gguf", "tuned-q8_0.gguf",
    ]  # fmt: skip
    assert (folder / "ollama/Modelfile-q8_0").read_text().startswith("FROM ./tuned-q8_0.gguf")
    for file in [path for path in folder.rglob("*") if path.is_file() and path.name != "export.json"]:
        assert PERSON.encode() not in file.read_bytes(), f"{file.name} has a path of this machine"


@pytest.mark.slow
def test_a_wrong_merge_is_found_before_it_is_quantized(run, monkeypatch, capsys):
    real = merging.merge

    def wrong(base, adapter, out, *args, **kwargs):
        return real(base, None, out, *args, **kwargs)

    monkeypatch.setattr(merging, "merge", wrong)
    line = r"gguf f32: this is not .* First difference: in the merged model, layer . differs first"
    with pytest.raises(ModelError, match=line):
        hub.export(run=run, to=["gguf"], quant=["q4_k_m"], num_check_rows=2, out=run / "wrong")
    assert "quantized" not in capsys.readouterr().out
    assert not list((run / "wrong").iterdir())
