"""What several benchmarks work on: models in the shapes of known ones with random weights, and chats of real lengths."""

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
"""SmolLM2 135M's, Llama 3.2 1B's and Llama 3 8B's shapes. Weights are random: speed and memory do not depend on them."""

POSITIONS = 8192
"""Of the models, as Llama 3 has it. Some build tables of this length, which count in their memory."""

RECIPE = 2
"""Raised when what is made changes, so that nothing made before is taken from the cache."""

POOL = 2**24 - 3
"""Random numbers that all weights are cut from. Prime to every row's length, so that no two rows of a matrix are alike."""

WRITERS = 8
"""Threads that write: one writes slower than a disk can."""


def make(folder: Path, shape: str) -> None:
    """A model folder and chats with lengths as real ones have them (log-normal, mean about 470 tokens, at most 1,900)."""
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
    """Config and bfloat16 weights, a file for each layer: norms are 1, all else is normal with deviation 0.02.

    Initialising 8 billion weights one by one takes most of a minute; here they are cut from a pool, by several threads.
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
    """One file in the safetensors format: the header's length, the header, and the weights one after the other."""
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
    """Give each row of the embedding a token, so that rows of any numbers can be trained on."""
    found = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = found["model"]["vocab"]
    vocabulary |= {f"<filler{number}>": number for number in range(len(vocabulary), size)}
    file.write_text(json.dumps(found), encoding="utf-8")


def made(shape: str) -> Path:
    """The folder of such a model, with `chats.jsonl` in it: made once, in the user's cache."""
    return make_once(cache_dir() / "benchmarks" / f"llama-{shape}-{RECIPE}", lambda aside: make(aside, shape))


def made_for(shape: str, longest: int) -> Path:
    """The same model with room for rows of so many tokens; the weights are the same files."""
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
