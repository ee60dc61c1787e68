"""Operations per token, and the fraction of the peak that a run reaches."""

import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from hub.config.schema import ModelConfig
from hub.models.structure import expert_stacks
from hub.testing import tiny_model_path
from hub.train.layout.flops import flops_per_token, num_in_experts, num_multiplied, num_trained_of_token


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


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v2", "gpt_oss"])
def test_of_a_mixture_those_experts_count_that_a_token_uses(family):
    path = tiny_model_path(family)
    few = AutoConfig.from_pretrained(path)
    used = next(getattr(few, name) for name in ("num_experts_per_tok", "top_k") if hasattr(few, name))
    name = next(name for name in ("n_routed_experts", "num_local_experts", "num_experts") if getattr(few, name, None))
    with torch.device("meta"):
        counted = num_multiplied(AutoModelForCausalLM.from_config(few))
        all_experts = num_in_experts(AutoModelForCausalLM.from_config(few))
        setattr(few, name, used)  # a model that has only the experts that a token uses
        dense = AutoModelForCausalLM.from_config(few)
    assert all_experts > num_in_experts(dense) > 0
    router = sum(p.numel() for n, p in dense.named_parameters() if re.search(r"(gate|router)\.weight$", n) and p.ndim == 2)
    routers_of_all = router / used * getattr(AutoConfig.from_pretrained(path), name)
    assert counted == num_multiplied(dense) - router + routers_of_all
    assert flops_per_token(ModelConfig(path=str(path)), path, num_trained=0) == 4 * counted


@pytest.mark.parametrize(("family", "share"), [("mixtral", 2 / 4), ("deepseek_v2", 2 / 4), ("llama", 1.0)])
def test_of_adapters_on_experts_those_count_that_a_token_uses(family, share):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny_model_path(family)))
        stacks = [".".join(tensor) for tensor in expert_stacks(model)]
        adapted = get_peft_model(model, LoraConfig(target_modules=["o_proj"], target_parameters=stacks, r=3))
    trained = {name: p.numel() for name, p in adapted.named_parameters() if p.requires_grad}
    in_experts = sum(number for name, number in trained.items() if ".experts." in name)
    assert bool(in_experts) == bool(stacks)
    assert num_trained_of_token(adapted) == sum(trained.values()) - in_experts * (1 - share)
