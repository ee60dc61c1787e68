"""A model that sees later tokens is refused: by its config where the family is known, else by a measurement."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hub.models.causality import look_ahead
from hub.models.encoders import ENCODERS
from hub.testing import VOCAB, tokenizer

SHAPE = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": VOCAB,
    "max_position_embeddings": 512, "pad_token_id": 0, "initializer_range": 0.1,
}  # fmt: skip
LEAK_AS_DECODERS = {"big_bird", "megatron-bert", "rembert", "roformer"}
"""In transformers 5.17 these see later tokens although config.json says that they are decoders. The measurement finds it."""

CPU = torch.device("cpu")


def of(family: str, **values: object):
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SHAPE | values)).eval()


@pytest.mark.parametrize("family", sorted(ENCODERS - {"xmod", "reformer"}))
def test_encoders_look_ahead_unless_they_are_decoders(family):
    measured = look_ahead(of(family), VOCAB, CPU, torch.float32)
    assert measured > 0.1
    if family not in LEAK_AS_DECODERS:
        assert look_ahead(of(family, is_decoder=True), VOCAB, CPU, torch.float32) == 0.0


def test_an_encoder_is_refused_before_anything_starts(tmp_path, hub):
    for values, words in (
        ({"model_type": "roberta"}, " is an encoder (roberta): it sees the tokens that it would learn to predict."),
        ({"model_type": "t5", "is_encoder_decoder": True}, " is an encoder-decoder model (t5), and the hub trains"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(values))
        said = hub("algo=lora_sft", f"model.path={tmp_path}", "data=tiny")
        (problem,) = said.problems
        assert problem.startswith(f"model.path={tmp_path}{words}")
        assert said.code == 2
        assert not (tmp_path / "runs").exists()


def test_a_model_of_another_family_that_looks_ahead_is_refused_before_training(tmp_path, hub):
    of("gemma3_text", use_bidirectional_attention=True, head_dim=16).save_pretrained(tmp_path / "model")
    tokenizer(VOCAB).save_pretrained(tmp_path / "model")
    for task in ("train", "verify"):
        said = hub(task, "algo=lora_sft", "model.path=model", "data=tiny", "launch.mode=inline", f"run_name={task}")
        (problem,) = said.problems
        assert problem.startswith("Gemma3ForCausalLM is no causal language model: later tokens change the logits")
        assert not (tmp_path / "runs" / task / "metrics.jsonl").exists()
