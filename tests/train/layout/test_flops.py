"""Operations per token, and the fraction of the peak that a run reaches."""

import pytest
from transformers import AutoConfig

from hub.config.schema import ModelConfig
from hub.testing import tiny_model_path
from hub.train.layout.flops import flops_per_token


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_weight_takes_four_operations_per_token_and_six_where_it_trains(family):
    path = tiny_model_path(family)
    config = AutoConfig.from_pretrained(path)
    hidden, layers = config.hidden_size, config.num_hidden_layers
    if family == "gpt2":
        inner = config.n_inner or 4 * hidden
        layer = 4 * hidden * hidden + 2 * hidden * inner
    else:
        keys = hidden * config.num_key_value_heads // config.num_attention_heads
        layer = 2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * config.intermediate_size
    weights = layers * layer + hidden * config.vocab_size
    assert flops_per_token(ModelConfig(path=str(path)), path, num_trained=0) == 4 * weights
    assert flops_per_token(ModelConfig(path=str(path)), path, num_trained=10**9) == 6 * weights
    assert flops_per_token(ModelConfig(path=str(path)), path, num_trained=100) == 4 * weights + 200


def test_a_mixture_of_experts_is_left_out():
    path = tiny_model_path("mixtral")
    assert flops_per_token(ModelConfig(path=str(path)), path, num_trained=0) is None
