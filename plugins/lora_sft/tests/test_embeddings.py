"""What trains besides the adapters: rows of new tokens, whole embeddings, other modules."""

import json

import pytest
import torch
import torch.nn.functional as F
from hub_lora_sft.config import LoraSftConfig
from hub_lora_sft.embeddings import extra_options
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from hub import ConfigError, compose
from hub.data.prepare import prepare
from hub.launch.launcher import launch
from hub.models.tokens import Vocabulary
from hub.testing import tiny_model, tiny_model_path

NEW = ("<tool>", "</tool>")


def train(tmp_path, folder, *overrides):
    turns = [("user", "hi {} <tool>"), ("assistant", "<tool>{}</tool>!")]
    rows = [{"messages": [{"role": role, "content": text.format(n)} for role, text in turns]} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    cfg = compose("algo=lora_sft", f"model.path={folder}", f"data.path={tmp_path / 'rows.jsonl'}", "data.eval_fraction=0.2",
                  f"model.add_tokens={json.dumps(NEW)}", "model.dtype=float32", "algo.learning_rate=1e-2", "algo.max_steps=2",
                  "launch=inline", f"output_dir={tmp_path}", *overrides)  # fmt: skip
    return cfg, launch(cfg)


def loss_of(model, cfg, tokenizer) -> float:
    total, count = 0.0, 0
    for sample in prepare(cfg, tokenizer, None).evaluation:
        ids = torch.from_numpy(sample.input_ids).long()[None]
        labels = torch.where(torch.from_numpy(sample.loss_mask), ids[0], -100)[1:]
        with torch.no_grad():
            total += F.cross_entropy(model(input_ids=ids).logits[0, :-1], labels, reduction="sum").item()
        count += int((labels != -100).sum())
    return total / count


def is_tied(model) -> bool:
    return model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", ["model.pad_vocab_to_multiple_of=520", "algo.init=pissa", "algo.save_every_steps=1"]),
        ("gpt2", ["model.pad_vocab_to_multiple_of=520"]),
        ("gpt2", ["algo.train_embeddings=true", "algo.modules_to_save=[ln_f]"]),
        ("llama", ["algo.modules_to_save=[embed_tokens]"]),
    ],
)
def test_what_is_saved_is_what_was_trained_and_old_rows_stay(tmp_path, family, overrides, capsys):
    folder = tiny_model(tmp_path / "model", family)
    cfg, result = train(tmp_path, folder, *overrides)
    tokenizer = AutoTokenizer.from_pretrained(result.model_path)
    plan = json.loads((result.run_path / "plan.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tables = {name: getattr(base, name)().weight.detach().clone() for name in ("get_input_embeddings", "get_output_embeddings")}
    was_tied = is_tied(base)
    base.resize_token_embeddings(plan["embedding_rows"])
    model = PeftModel.from_pretrained(base, result.model_path).eval()
    assert loss_of(model, cfg, tokenizer) == pytest.approx(result.eval_loss, abs=1e-4)
    if "algo.save_every_steps=1" in overrides:
        saved = json.loads((result.run_path / "checkpoints/step-00000001/model/adapter_config.json").read_text())
        rows = [410, 411, *range(512, 520)]
        assert saved["trainable_token_indices"] == {"model.embed_tokens": rows, "lm_head": rows}
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    assert loss_of(plain, cfg, tokenizer) == pytest.approx(result.eval_loss, abs=1e-4)
    assert is_tied(plain) == was_tied
    new = tokenizer.convert_tokens_to_ids(list(NEW))
    old = [number for number in range(512) if number not in new]
    for name, before in tables.items():
        after = getattr(plain, name)().weight.detach()
        whole = "algo.train_embeddings=true" in overrides or (name == "get_input_embeddings" and "embed_tokens" in overrides[0])
        assert torch.equal(after[old], before[old]) != whole
        assert not torch.equal(after[new], before[new])


def test_trained_embeddings_in_float32_go_with_frozen_norms_in_bfloat16(tmp_path):
    _, result = train(tmp_path, tiny_model_path("gpt2"), "algo.train_embeddings=true", "model.dtype=bfloat16")
    assert result.eval_loss < result.eval_loss_before


def options(model, targets=(), rows=(3,), **algo):
    vocabulary = Vocabulary(512, 512, 512, dict.fromkeys(rows, "x"), (), {})
    return extra_options(LoraSftConfig(**algo), model, vocabulary, targets)


@pytest.fixture(scope="module")
def llama():
    return AutoModelForCausalLM.from_pretrained(tiny_model_path("llama"))


@pytest.mark.parametrize(
    ("algo", "targets", "line"),
    [
        (
            {"modules_to_save": ["embed_token"]},
            (),
            "no module with weights is called embed_token. Allowed: .*Did you mean",
        ),
        ({"modules_to_save": ["mlp"]}, ("model.layers.1.mlp.up_proj",), "but model.layers.1.mlp.up_proj gets an adapter"),
        ({}, ("lm_head",), "lm_head gets an adapter and has rows of new tokens to train, which can't be combined"),
    ],
)
def test_modules_that_can_not_train_so_are_refused(llama, algo, targets, line):
    with pytest.raises(ConfigError, match=line):
        options(llama, targets, **algo)


def test_rows_of_an_output_layer_with_a_bias_are_refused_and_the_whole_trains(llama):
    llama.lm_head.bias = torch.nn.Parameter(torch.zeros(512))
    with pytest.raises(ConfigError, match=r"single rows of lm_head can't train: .* Type algo\.train_embeddings=true"):
        options(llama)
    assert options(llama, train_embeddings=True)["modules_to_save"] == ["model.embed_tokens", "lm_head"]
    llama.lm_head.bias = None
