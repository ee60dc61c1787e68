"""Tokens that the model has no embedding for."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hub import compose
from hub.cli.main import main
from hub.errors import DataError
from hub.launch.launcher import launch
from hub.testing import tiny_model
from hub.train.layout.layout import _pad_id


def chats(file, answers):
    rows = [{"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": text}]}
            for n, text in enumerate(answers)]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def short_model(tmp_path_factory):
    """A model whose tokenizer has more tokens than its embeddings have rows."""
    folder = tiny_model(tmp_path_factory.mktemp("short") / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<new{number}>" for number in range(512 - len(tokenizer) + 2)])
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(513)
    tokenizer.save_pretrained(folder)
    return folder


def run(tmp_path, model, data, *overrides):
    return launch(
        compose("algo=lora_sft", f"model.path={model}", f"data.path={data}", f"output_dir={tmp_path}", "launch=inline",
                "algo.max_steps=1", *overrides)
    )  # fmt: skip


def test_a_row_with_a_token_beyond_the_embeddings_is_refused_before_training(tmp_path, short_model, capsys):
    tokenizer = AutoTokenizer.from_pretrained(short_model)
    last, beyond = tokenizer.convert_ids_to_tokens([511, 512])
    data = chats(tmp_path / "rows.jsonl", [f"{last} ok", f"{beyond} ok"])
    line = f"rows.jsonl:2: the token {beyond} has id 512, but the model has embeddings for 512 tokens only"
    with pytest.raises(DataError, match=line):
        run(tmp_path, short_model, data)
    mixed = [{"text": f"a {beyond} b"}, {"input_ids": [1, 512]}, json.loads(data.read_text().splitlines()[1])]
    for row in mixed:
        data.write_text((json.dumps(row) + "\n") * 2, encoding="utf-8")
        assert main(["data", f"model.path={short_model}", f"data.path={data}"]) == 1
        assert line in capsys.readouterr().out


def test_unused_tokens_beyond_the_embeddings_are_reported_and_do_no_harm(tmp_path, short_model, capsys):
    data = chats(tmp_path / "rows.jsonl", ["yes", "a much longer answer"])
    assert run(tmp_path, short_model, data).status == "completed"
    tokenizer = AutoTokenizer.from_pretrained(short_model)
    assert tokenizer.pad_token_id == 513
    assert _pad_id(tokenizer, 512) == tokenizer.eos_token_id  # padding with 513 would end in an IndexError
    assert "2 tokens of the tokenizer have no embedding in the model (" in capsys.readouterr().out


def test_resized_a_model_trains_on_them_and_is_saved_with_its_rows(tmp_path, short_model):
    data = chats(tmp_path / "rows.jsonl", [AutoTokenizer.from_pretrained(short_model).convert_ids_to_tokens(513), "yes"])
    result = run(tmp_path, short_model, data, "algo=sft", "model.resize_vocab=true", "model.pad_vocab_to_multiple_of=64",
                 "model.dtype=float32")  # fmt: skip
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (short_model, result.model_path))
    assert after.config.vocab_size == after.get_output_embeddings().weight.shape[0] == 576
    assert len(AutoTokenizer.from_pretrained(result.model_path)) == 514
    assert not torch.equal(after.get_input_embeddings().weight[:512], before.get_input_embeddings().weight)
