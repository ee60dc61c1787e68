"""New tokens: in the tokenizer, and in the embeddings before training."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from hub import ConfigError, compose
from hub.config.data import DataSource
from hub.config.schema import ModelConfig
from hub.data.token_cache import key_of
from hub.data.tokens.tokenizer import load_tokenizer
from hub.models.tokens import resize_embeddings, vocabulary_of
from hub.testing import tiny_model, tiny_model_path, write_chats

NEW = 'model.add_tokens=["<tool>","</tool>"]'


def config(folder, *overrides):
    return compose("algo=sft", f"model.path={folder}", "data=tiny", *overrides)


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def folder(request, tmp_path_factory):
    """A model with 410 tokens and as many embeddings."""
    path = tiny_model(tmp_path_factory.mktemp("model") / "m", "gpt2" if request.param else "llama")
    model = AutoModelForCausalLM.from_pretrained(path)
    model.resize_token_embeddings(410)
    model.save_pretrained(path)
    return path


@pytest.mark.parametrize("init", ["parts", "mean"])
def test_new_rows_begin_as_a_mean_and_the_others_stay(folder, init):
    cfg = config(folder, NEW, "model.pad_vocab_to_multiple_of=64", f"model.new_token_init={init}")
    tokenizer = load_tokenizer(cfg, folder)
    stored, model = (AutoModelForCausalLM.from_pretrained(folder) for _ in range(2))
    resize_embeddings(model, vocabulary_of(cfg.model, folder, tokenizer), cfg.model)
    parts = AutoTokenizer.from_pretrained(folder).encode("</tool>", add_special_tokens=False)
    assert len(parts) > 1
    tied = AutoConfig.from_pretrained(folder).tie_word_embeddings
    assert model.config.vocab_size == 448
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    for name in ("get_input_embeddings", "get_output_embeddings"):
        before, after = (getattr(each, name)().weight.detach() for each in (stored, model))
        assert torch.equal(before, after[:410])
        everything = before.mean(0)
        assert torch.allclose(after[411], before[parts].mean(0) if init == "parts" else everything, atol=1e-6)
        assert torch.allclose(after[412:], everything.expand(36, -1), atol=1e-6)


def test_new_tokens_take_unused_rows_first_and_get_a_start_there_too():
    path = tiny_model_path("llama")  # 512 rows for 410 tokens
    cfg = config(path, NEW)
    vocabulary = vocabulary_of(cfg.model, path, load_tokenizer(cfg, path))
    model = AutoModelForCausalLM.from_pretrained(path)
    before = model.get_input_embeddings().weight.detach().clone()
    resize_embeddings(model, vocabulary, cfg.model)
    weight = model.get_input_embeddings().weight.detach()
    assert vocabulary.new_rows == [410, 411]
    assert torch.allclose(weight[410], before[vocabulary.parts[410]].mean(0), atol=1e-6)
    assert torch.equal(weight[412:], before[412:])


def test_tokens_of_the_tokenizer_that_have_no_row_get_one_from_the_parts_of_their_text(tmp_path):
    path = tiny_model(tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_tokens([f"<new{number}>" for number in range(512 - len(tokenizer) + 1)])
    tokenizer.save_pretrained(path)
    vocabulary = vocabulary_of(ModelConfig(path=str(path), resize_vocab=True), path, tokenizer)
    assert (vocabulary.num_rows, vocabulary.new) == (513, {512: "<new102>"})
    assert 512 not in vocabulary.parts[512]
    known = [tokenizer.convert_ids_to_tokens(number) for number in vocabulary.parts[512]]
    assert "".join(known) == "<new102>"


def test_a_new_token_is_one_token_within_a_word_and_special_ones_can_be_left_out(tmp_path):
    path = tiny_model_path("llama")
    cfg = config(path, NEW, 'model.add_special_tokens=["<|think|>"]')
    tokenizer = load_tokenizer(cfg, path)
    ids = tokenizer.encode("a<tool>b<|think|>", add_special_tokens=False)
    assert [tokenizer.decode([number]) for number in ids] == ["a", "<tool>", "b", "<|think|>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a<tool>b"
    source = DataSource(path=str(write_chats(tmp_path / "rows.jsonl")))
    assert key_of(cfg, source, tokenizer, None) != key_of(cfg, source, AutoTokenizer.from_pretrained(path), None)


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ('model.add_tokens=["a","a"]', "model.add_tokens: a is there twice"),
        ('model.add_special_tokens=[" "]', "model.add_special_tokens has an empty token"),
    ],
)
def test_tokens_that_can_not_be_added_are_refused(option, line):
    assert [problem.startswith(line) for problem in config("x", option).model.token_problems()] == [True]
    with pytest.raises(ConfigError, match=r"model\.add_tokens=\{a:b\} is not allowed\. Allowed: a text, or a list like"):
        config("x", "model.add_tokens={a:b}")
