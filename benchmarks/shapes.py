"""Inputs of the benchmarks: models in the shapes of known ones with random weights, and chats with realistic lengths."""

import json
import math
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hub.system.cache import cache_dir, make_once

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
"""Shapes of SmolLM2 135M, Llama 3.2 1B and Llama 3 8B. Weights are random: speed and memory do not depend on them."""

POSITIONS = 8192
"""Maximum number of positions of the models, as of Llama 3. Some models allocate tables of this length."""

RECIPE = 2
"""Version of the generated files. Raise it when they change, so that the cache has no old ones."""

POOL = 2**24 - 3
"""Size of the pool of random numbers for all weights. Coprime to every row's length, so no two rows of a matrix are equal."""

WRITERS = 8
"""Number of writing threads: a single one is slower than a disk."""


def make(folder: Path, shape: str) -> None:
    """Write a model folder, and chats with realistic lengths (log-normal, mean about 470 tokens, at most 1,900)."""
    from hub.testing import tokenizer

    write_model(folder, shape)
    tokens = tokenizer()
    tokens.model_max_length = POSITIONS
    tokens.save_pretrained(folder)
    _fill_vocabulary(folder / "tokenizer.json", SHAPES[shape]["vocab_size"])
    draw = random.Random(0)

    def words(count: int) -> str:
        return "".join(draw.choice("abcdefghijklmnopqrstuvwxyz ") for _ in range(count))

    with (folder / "chats.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(400):
            length = min(1900, max(16, int(draw.lognormvariate(5.9, 0.8))))
            turns = [("user", length // 3), ("assistant", 2 * length // 3)]
            row = {"messages": [{"role": role, "content": words(count)} for role, count in turns]}
            file.write(json.dumps(row) + "\n")


def write_model(folder: Path, shape: str) -> None:
    """Write config and bfloat16 weights, a file for each layer: norms are 1, all else is normal with deviation 0.02.

    Initializing 8 billion weights one by one takes most of a minute. Here several threads cut them from a pool.
    """
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=POSITIONS, tie_word_embeddings=shape != "8b")
    config.architectures, config.dtype = ["LlamaForCausalLM"], "bfloat16"
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    numbers = np.random.default_rng(0).standard_normal(POOL, dtype=np.float32) * np.float32(0.02)
    # The upper half of a float32 is a bfloat16, after rounding.
    pool = memoryview(((numbers.view(np.uint32) + 0x8000) >> 16).astype("<u2")).cast("B")
    files: dict[str, dict[str, list[int]]] = {}
    for name, weight in model.named_parameters():  # a tied head is the embedding, and comes once
        place = name.split(".")[2] if name.startswith("model.layers.") else "rest"
        files.setdefault(f"model-{place}.safetensors", {})[name] = list(weight.shape)
    with ThreadPoolExecutor(WRITERS) as threads:
        list(threads.map(lambda file: _write(folder / file, files[file], pool), files))
    index = {
        "metadata": {"total_size": 2 * sum(weight.numel() for weight in model.parameters())},
        "weight_map": {name: file for file, names in files.items() for name in names},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _write(file: Path, shapes: dict[str, list[int]], pool: memoryview) -> None:
    """Write one file in the safetensors format: the header's length, the header, and the weights one after the other."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    draw = random.Random(file.name)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            left = 2 * math.prod(shape)
            if "norm" in name:
                stream.write(b"\x80\x3f" * (left // 2))
                continue
            place = 2 * draw.randrange(POOL)
            while left:
                part = pool[place : place + left]
                stream.write(part)
                left, place = left - len(part), 0


def _fill_vocabulary(file: Path, size: int) -> None:
    """Give each row of the embedding a token, so that random token ids are valid."""
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary |= {f"<filler{number}>": number for number in range(len(vocabulary), size)}
    file.write_text(json.dumps(tokenizer), encoding="utf-8")


def made(shape: str) -> Path:
    """The folder of such a model, with `chats.jsonl` in it: made once, in the user's cache."""
    return make_once(cache_dir() / "benchmarks" / f"llama-{shape}-{RECIPE}", lambda aside: make(aside, shape))


def made_for(shape: str, longest: int) -> Path:
    """Return the same model with enough positions for rows of `longest` tokens. The weights are hard links."""
    base = made(shape)
    if longest <= POSITIONS:
        return base

    def make_longer(aside: Path) -> None:
        for file in base.iterdir():
            (aside / file.name).hardlink_to(file)
        config = json.loads((base / "config.json").read_text(encoding="utf-8"))
        (aside / "config.json").unlink()
        (aside / "config.json").write_text(json.dumps(config | {"max_position_embeddings": longest}), encoding="utf-8")

    return make_once(base.with_name(f"{base.name}-{longest}"), make_longer)


def num_multiplied(shape: str) -> int:
    """Weights that each token is multiplied with: all but norms and the embedding, which is looked up. With the head."""
    size = SHAPES[shape]
    hidden, intermediate = size["hidden_size"], size["intermediate_size"]
    keys = hidden * size["num_key_value_heads"] // size["num_attention_heads"]
    layer = 2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * intermediate
    return size["num_hidden_layers"] * layer + hidden * size["vocab_size"]
