"""The shapes of presets, as their config.json on the model hub have them: plans need no more, and no network."""

import json
from pathlib import Path
from typing import Any

from hub.system.cache import cache_dir, make_once

RECIPE = 1
"""Version of the generated folders. Raise it when a shape changes, so that the cache has no old ones."""

_LLAMA: dict[str, Any] = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5}
_QWEN2: dict[str, Any] = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "rms_norm_eps": 1e-6}


def _config(
    hidden: int, inner: int, layers: int, heads: int, keys: int, vocab: int, positions: int, **more: Any
) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "vocab_size": vocab,
        "max_position_embeddings": positions,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        **more,
    }


SHAPES: dict[str, dict[str, Any]] = {
    "smollm2_135m": _LLAMA | _config(576, 1536, 30, 9, 3, 49152, 8192, tie_word_embeddings=True),
    "llama3_2_1b": _LLAMA | _config(2048, 8192, 16, 32, 8, 128256, 131072, head_dim=64, tie_word_embeddings=True),
    "llama3_2_3b": _LLAMA | _config(3072, 8192, 28, 24, 8, 128256, 131072, head_dim=128, tie_word_embeddings=True),
    "phi3_5_mini": {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"]}
    | _config(3072, 8192, 32, 32, 32, 32064, 131072, pad_token_id=0, rms_norm_eps=1e-5),
    "mistral_7b": {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    | _config(4096, 14336, 32, 32, 8, 32768, 32768, sliding_window=None),
    "qwen2_5_7b": _QWEN2 | _config(3584, 18944, 28, 28, 4, 152064, 32768, use_sliding_window=False),
    "llama3_1_8b": _LLAMA | _config(4096, 14336, 32, 32, 8, 128256, 131072),
    "qwen3_8b": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
    | _config(4096, 12288, 36, 32, 8, 151936, 40960, head_dim=128, use_sliding_window=False),
    "gemma2_9b": {"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"]}
    | _config(3584, 14336, 42, 16, 8, 256000, 8192, head_dim=256, tie_word_embeddings=True, query_pre_attn_scalar=256),
    "llama3_1_70b": _LLAMA | _config(8192, 28672, 80, 64, 8, 128256, 131072),
}
"""Preset -> its config. Rotary embeddings are left at their defaults: they decide neither memory nor time."""


def folder_of(preset: str) -> Path:
    """The folder with a preset's config.json and a small tokenizer: made once, in the user's cache."""
    return make_once(cache_dir() / "benchmarks" / f"shape-{preset}-{RECIPE}", lambda aside: _make(aside, SHAPES[preset]))


def _make(aside: Path, config: dict[str, Any]) -> None:
    from hub.testing import tokenizer

    tokenizer().save_pretrained(aside)
    (aside / "config.json").write_text(json.dumps(config), encoding="utf-8")
