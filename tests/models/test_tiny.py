import json
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer

from hub.config.option import field_problems
from hub.config.schema import ModelConfig
from hub.errors import ModelError
from hub.testing import FAMILIES, VOCAB, tiny_model, tiny_model_path, write_chats

PRESETS = sorted((Path(__file__).parents[2] / "conf" / "model").glob("*.yaml"))


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, str]]]:
    file = write_chats(tmp_path_factory.mktemp("chats") / "chats.jsonl", num_rows=32)
    return [json.loads(line)["messages"] for line in file.read_text().splitlines()]


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_model_loads_answers_and_learns(family, tmp_path, chats):
    tiny_model(tmp_path, family)
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.config.model_type == family
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert next(model.parameters()).dtype == torch.float32

    rows = [tokenizer.apply_chat_template(row, return_dict=False) for row in chats[:4]]
    width = max(map(len, rows))
    assert 40 < width < model.config.max_position_embeddings
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = []
    for _ in range(8):
        logits = model(input_ids=ids, attention_mask=mask).logits
        assert logits.shape == (4, width, VOCAB)
        assert logits.isfinite().all()
        loss = torch.nn.functional.cross_entropy(logits[:, :-1][mask[:, 1:] == 1], ids[:, 1:][mask[:, 1:] == 1])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("family", ["llama", "qwen2"])  # transformers takes another tokenizer class for qwen2
def test_tokenizer_gives_text_back_and_renders_chats(family, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model(tmp_path, family))
    text = "Äpfel 12 \n\t<x> 字 🙂  end<|im_end|>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    rendered = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n"
    assert tokenizer.apply_chat_template(chat, tokenize=False) == rendered
    ids = tokenizer.apply_chat_template(chat, return_dict=False)
    assert ids.count(tokenizer.eos_token_id) == 2
    assert tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True).endswith("assistant\n")


def test_tiny_model_depends_on_its_seed_only(tmp_path):
    state = torch.random.get_rng_state()
    folders = [tiny_model(tmp_path / str(number), seed=seed) for number, seed in enumerate((1, 1, 2))]
    first, same, other = ({file.name: file.read_bytes() for file in folder.iterdir()} for folder in folders)
    assert first == same
    assert first["model.safetensors"] != other["model.safetensors"]
    assert torch.equal(state, torch.random.get_rng_state())


def test_tiny_model_is_made_once_and_again_when_a_file_is_gone(tmp_path, monkeypatch):
    monkeypatch.setenv("HUB_CACHE", str(tmp_path))
    folder = tiny_model_path("llama")
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert version("transformers") in folder.name
    assert (tiny_model_path("llama") / "model.safetensors").stat().st_mtime_ns == made
    (folder / "tokenizer.json").unlink()
    assert (tiny_model_path("llama") / "tokenizer.json").is_file()


def test_unknown_tiny_family_is_a_line_with_the_nearest_name():
    with pytest.raises(ModelError, match=r"tiny:lama is not known\. Did you mean llama"):
        tiny_model_path("lama")


def test_chats_are_ragged_partly_of_several_turns_and_repeatable(tmp_path):
    file = write_chats(tmp_path / "a.jsonl", num_rows=40, seed=3)
    rows = [json.loads(line)["messages"] for line in file.read_text().splitlines()]
    assert len(rows) == 40
    assert len({len(str(row)) for row in rows}) > 10
    assert {sum(message["role"] == "assistant" for message in row) for row in rows} == {1, 2, 3}
    assert all(row[-1]["role"] == "assistant" for row in rows)
    assert file.read_text() == write_chats(tmp_path / "b.jsonl", num_rows=40, seed=3).read_text()
    assert file.read_text() != write_chats(tmp_path / "c.jsonl", num_rows=40, seed=4).read_text()


@pytest.mark.parametrize("preset", PRESETS, ids=lambda file: file.stem)
def test_model_preset_holds_known_fields_and_a_family_that_is_tested(preset):
    values = OmegaConf.to_container(OmegaConf.load(preset))
    assert set(values) <= {item.name for item in fields(ModelConfig)}
    model = ModelConfig(**values)
    assert list(field_problems(model, "model")) == []
    assert model.family in FAMILIES
    assert model.notes
    assert model.path.startswith("tiny:") or model.path.count("/") == 1
    assert preset.stem.endswith("_bnb_4bit") == (model.quantization == "bnb-4bit") == ("bnb-4bit" in model.path)
