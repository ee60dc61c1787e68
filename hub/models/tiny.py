"""Create tiny random models, a tokenizer and chats, for `model=tiny` and for tests (through `hub.testing`).

`model.path=tiny:FAMILY` (or `model=tiny`) trains such a model from the command line. It is a small version of the real
architecture, including its experts, latent attention, sinks, sliding windows and soft caps.
"""

import json
import random
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from hub.errors import DataError, ModelError, did_you_mean
from hub.system.cache import cache_dir, make_once

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

VOCAB = 512
MAX_LENGTH = 512
RECIPE = 1
"""Version of the tiny models. Increase it on changes, so that cached models of an older version are not used."""

CHATS_RECIPE = 2
"""Version of the tiny chats."""

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

_MOST_TRIES = 20
_WINDOW = 32
_SHAPE: dict[str, object] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_LENGTH,
    # Large enough that an adapter reaches a low loss in spite of the frozen random head.
    "initializer_range": 0.1,
}
_TWO_KINDS_OF_LAYERS = ["sliding_attention", "full_attention"]
_CONFIGS: dict[str, dict[str, object]] = {
    "llama": _SHAPE,
    "mistral": _SHAPE | {"sliding_window": None, "head_dim": 16},
    "mixtral": _SHAPE | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "phi3": _SHAPE | {"sliding_window": 2 * _WINDOW},
    "qwen2": _SHAPE,
    "qwen3": _SHAPE | {"head_dim": 16},
    "qwen3_moe": _SHAPE
    | {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True},
    "gemma2": _SHAPE
    | {
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": _WINDOW,
        "layer_types": _TWO_KINDS_OF_LAYERS,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "deepseek_v2": _SHAPE
    | {
        "num_key_value_heads": 4,
        "first_k_dense_replace": 1,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "q_lora_rank": None,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "topk_method": "greedy",
    },
    "granite": _SHAPE
    | {
        "embedding_multiplier": 4.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.0625,
        "logits_scaling": 2.0,
    },
    "gpt_oss": _SHAPE
    | {
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": _WINDOW,
        "layer_types": _TWO_KINDS_OF_LAYERS,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 150000.0,
            "factor": 4.0,
            "original_max_position_embeddings": MAX_LENGTH // 4,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
        },
    },
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": MAX_LENGTH, "initializer_range": 0.1},
}

FAMILIES: tuple[str, ...] = tuple(_CONFIGS)
"""Available architectures (transformers' `model_type`): those of all model presets, and gpt2."""


def tokenizer(vocab: int = VOCAB) -> "PreTrainedTokenizerBase":
    """A byte-level BPE tokenizer with a ChatML template. It encodes any text, and decodes it back exactly.

    Args:
        vocab: maximum number of tokens, at least 300; the words of `write_chats` use about 400. The first are
            `<|endoftext|>` (padding), `<|im_start|>`, `<|im_end|>` (end).

    Raises:
        ModelError: `vocab` is too small.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab < 300:
        raise ModelError(f"vocab={vocab} is not allowed. Allowed: at least 300 (256 bytes and the special tokens)")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    messages = chain.from_iterable(_chats(200, random.Random(0)))
    texts = [message["content"] for message in messages]
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHATML,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def tiny_model(folder: Path, family: str = "llama", seed: int = 0, vocab: int = VOCAB) -> Path:
    """Write a tiny random model with tokenizer that transformers loads: 2 layers, hidden size 64, float32.

    Args:
        folder: created if missing.
        family: one of `FAMILIES`.
        seed: seed of the weights.
        vocab: size of the embeddings, at least 300. As in real models, the tokenizer may have fewer tokens.

    Returns:
        `folder`.

    Raises:
        ModelError: `family` is not known, or `vocab` is too small.
    """
    _check(family)
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokens = tokenizer(vocab)
    config = AutoConfig.for_model(
        family,
        **_CONFIGS[family],
        vocab_size=vocab,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs' generators as well
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder


def tiny_model_path(family: str) -> Path:
    """Folder of a tiny model in the user's cache, created on first use. Several processes may call it at once.

    Raises:
        ModelError: `family` is not known.
    """
    _check(family)
    name = f"{family}-recipe{RECIPE}-transformers{version('transformers')}"
    return make_once(
        cache_dir() / "tiny" / name,
        lambda folder: tiny_model(folder, family),
        lambda folder: all((folder / file).is_file() for file in ("config.json", "model.safetensors", "tokenizer.json")),
    )


def write_chats(file: Path, num_rows: int = 64, seed: int = 0) -> Path:
    """Write JSONL with chats of different lengths that a tiny model can learn: each answer follows from its question.

    About every third row has several turns; some begin with a system message.

    Args:
        file: the JSONL file; each line is `{"messages": [{"role": ..., "content": ...}, ...]}`.
        num_rows: number of lines.
        seed: the same seed gives the same lines.

    Returns:
        `file`.
    """
    dice, lines, seen = random.Random(seed), [], set()
    for _ in range(num_rows):
        # No duplicates, if possible: the evaluation set must not repeat training data.
        tries = [json.dumps({"messages": messages}) for messages in _chats(_MOST_TRIES, dice)]
        lines.append(next((line for line in tries if line not in seen), tries[0]))
        seen.add(lines[-1])
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


def _check(family: str) -> None:
    if family not in _CONFIGS:
        allowed = ", ".join(f"tiny:{name}" for name in FAMILIES)
        raise ModelError(f"tiny:{family} is not known.{did_you_mean(family, FAMILIES)} Allowed: {allowed}")


def _chats(num_rows: int, dice: random.Random) -> list[list[dict[str, str]]]:
    rows = []
    for _ in range(num_rows):
        messages = []
        if dice.random() < 0.2:
            messages.append({"role": "system", "content": "You are a helpful assistant."})
        for _ in range(dice.choice((1, 1, 2, 3))):
            question, answer = _turn(dice)
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        rows.append(messages)
    return rows


def _turn(dice: random.Random) -> tuple[str, str]:
    colors = {"sky": "blue", "grass": "green", "snow": "white", "coal": "black", "lemon": "yellow", "blood": "red"}
    sounds = {"cat": "meow", "dog": "woof", "cow": "moo", "duck": "quack", "sheep": "baa", "lion": "roar"}
    numbers = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
    kind = dice.choice(("color", "sound", "count", "repeat"))
    if kind == "color":
        thing = dice.choice(list(colors))
        return f"What colour is the {thing}?", f"The {thing} is {colors[thing]}."
    if kind == "sound":
        animal = dice.choice(list(sounds))
        return f"What does the {animal} say?", f"The {animal} says {sounds[animal]}, {sounds[animal]}!"
    if kind == "count":
        last = dice.randint(2, len(numbers))
        return f"Count to {numbers[last - 1]}.", ", ".join(numbers[:last]) + "."
    word, times = dice.choice(list(colors)), dice.randint(2, 9)
    return f"Say {word} {numbers[times - 1]} times.", " ".join([word] * times)


def tiny_data_path(name: str = "chats", option: str = "data.path") -> Path:
    """The JSONL file of `data.path=tiny:chats`, created once in the user's cache.

    Args:
        name: `chats`.
        option: the option that names it, for messages.

    Raises:
        DataError: there is no tiny dataset of this name.
    """
    if name != "chats":
        raise DataError(f"{option}=tiny:{name}: there is no such tiny dataset. Allowed: tiny:chats")
    folder = cache_dir() / "tiny" / f"chats-{CHATS_RECIPE}"
    make_once(folder, lambda aside: write_chats(aside / "chats.jsonl", num_rows=128))
    return folder / "chats.jsonl"
