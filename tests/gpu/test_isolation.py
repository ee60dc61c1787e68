"""Isolation of packed samples in half precision, by the kernels that a run would use."""

import pytest
import torch
from transformers import AutoModelForCausalLM
from zoo.zoo import zoo_model

from hub.models.patches import ModelPatches
from hub.testing import FAMILIES, tiny_model_path
from hub.train.layout.choose import choose_attention
from hub.train.layout.isolation import Trial

GPU = torch.device("cuda")
LEAK = ("falcon_h1", "openai-gpt", "mamba2", "jamba", "recurrent_gemma", "bloom")
ISOLATE_BY_VARLEN = ("opt",)
"""Their own attention takes the borders from the mask alone."""

ISOLATE = ("llama", "qwen3", "gemma3_text", "gpt_neo", "qwen3_moe", "mixtral", "olmoe", "glm4_moe")


TYPES = [(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16)]


@pytest.mark.parametrize(("weights", "dtype"), TYPES, ids=["float32", "float32 weights, bfloat16", "bfloat16"])
@pytest.mark.parametrize("name", [*LEAK, *ISOLATE, *ISOLATE_BY_VARLEN])
def test_packing_is_chosen_where_samples_are_isolated_and_nowhere_else(name, weights, dtype):
    folder = tiny_model_path(name) if name in FAMILIES else zoo_model(name)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=weights, device_map={"": 0}).eval()
    own, why = Trial(model, 512, GPU, dtype).can_pack()
    attention = choose_attention(ModelPatches(model), model, 512, GPU, dtype)
    print(f"{name}: {why}; {attention.name}: {attention.packed_because}")
    assert own == (name in ISOLATE), why
    assert attention.packed == (own or (attention.variable_length and name in ISOLATE_BY_VARLEN)), attention.packed_because
