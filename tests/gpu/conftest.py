"""Tests that need a CUDA GPU: `pytest tests/gpu` on a machine that has one."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hub.testing import tokenizer, write_chats


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "tests/gpu" in str(item.path):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


NUM_CHATS = 600
"""Rows of a module's chats, unless it has a number of its own by this name."""


@pytest.fixture(scope="module")
def parts(tmp_path_factory, request):
    """A model whose activations are most of what it takes, and chats."""
    folder = tmp_path_factory.mktemp("parts")
    config = LlamaConfig(hidden_size=512, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=8,
                         num_key_value_heads=8, vocab_size=512, tie_word_embeddings=True)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    chats = write_chats(folder / "chats.jsonl", num_rows=getattr(request.module, "NUM_CHATS", NUM_CHATS))
    return [f"model.path={folder}", f"data.path={chats}"]
