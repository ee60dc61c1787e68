"""What several benchmarks work on: models in the shapes of known ones with random weights, and chats of real lengths."""

import json
import random
from pathlib import Path

from hub.cache import cache_dir, make_once

SHAPES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 512},
    "135m": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
             "num_key_value_heads": 3, "vocab_size": 49152},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256},
}  # fmt: skip
"""SmolLM2 135M's, Llama 3.2 1B's and Llama 3 8B's shapes. Weights are random: speed and memory do not depend on them."""


def make(folder: Path, shape: str) -> None:
    """A model folder and chats with lengths as real ones have them (log-normal, mean about 470 tokens, at most 1,900)."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from hub.testing import tokenizer

    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=8192, tie_word_embeddings=shape != "8b")
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    draw = random.Random(0)

    def words(count: int) -> str:
        return "".join(draw.choice("abcdefghijklmnopqrstuvwxyz ") for _ in range(count))

    with (folder / "chats.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(400):
            length = min(1900, max(16, int(draw.lognormvariate(5.9, 0.8))))
            turns = [("user", length // 3), ("assistant", 2 * length // 3)]
            row = {"messages": [{"role": role, "content": words(count)} for role, count in turns]}
            file.write(json.dumps(row) + "\n")


def made(shape: str) -> Path:
    """The folder of such a model, with `chats.jsonl` in it: made once, in the user's cache."""
    return make_once(cache_dir() / "benchmarks" / f"llama-{shape}-1", lambda aside: make(aside, shape))
