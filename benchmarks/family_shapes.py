"""The config.json of every model preset, for `python -m benchmarks families`: real widths, depths and kinds of attention.

The values are those of the published config.json files. `preset_shapes.py` leaves out what a plan of memory does without: the
numbers of the rotary embeddings, windows, multipliers.
"""

from pathlib import Path
from typing import Any

from benchmarks.preset_shapes import SHAPES

_LLAMA3 = {"rope_theta": 500000.0}


def _scaled(factor: float) -> dict[str, Any]:
    """Rotary embeddings of Llama 3.1 (factor 8) and 3.2 (factor 32)."""
    return _LLAMA3 | {
        "rope_scaling": {
            "factor": factor,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        }
    }


def _yarn(factor: float, **more: Any) -> dict[str, Any]:
    values = {"beta_fast": 32.0, "beta_slow": 1.0, "factor": factor, "original_max_position_embeddings": 4096}
    return {"rope_scaling": {**values, "rope_type": "yarn", **more}}


_LLAMA: dict[str, Any] = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
_LLAMA3_8B = {**SHAPES["llama3_1_8b"], **_LLAMA3, "max_position_embeddings": 8192}
_LLAMA3_70B = {**SHAPES["llama3_1_70b"], **_LLAMA3, "max_position_embeddings": 8192}
_ALTERNATING = ["sliding_attention", "full_attention"]

FAMILIES: dict[str, dict[str, Any]] = {
    "smollm2_135m": SHAPES["smollm2_135m"] | {"rope_theta": 100000.0},
    "llama3_2_1b": SHAPES["llama3_2_1b"] | _scaled(32.0),
    "llama3_2_3b": SHAPES["llama3_2_3b"] | _scaled(32.0),
    "phi3_mini": SHAPES["phi3_5_mini"] | {"max_position_embeddings": 4096, "sliding_window": 2047, "rope_theta": 10000.0},
    "phi3_5_mini": SHAPES["phi3_5_mini"] | {"sliding_window": 262144, "rope_theta": 10000.0},
    "yi_6b": _LLAMA
    | {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 4, "vocab_size": 64000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
        "rope_theta": 5000000.0, "tie_word_embeddings": False,
    },
    "mistral_7b": SHAPES["mistral_7b"] | {"rope_theta": 1000000.0, "rms_norm_eps": 1e-5},
    "qwen2_7b": SHAPES["qwen2_5_7b"] | {"rope_theta": 1000000.0},
    "qwen2_5_7b": SHAPES["qwen2_5_7b"] | {"rope_theta": 1000000.0},
    "llama3_8b": _LLAMA3_8B,
    "llama3_1_8b": SHAPES["llama3_1_8b"] | _scaled(8.0),
    "qwen3_8b": SHAPES["qwen3_8b"] | {"rope_theta": 1000000.0, "rms_norm_eps": 1e-6},
    "granite3_3_8b": {
        "model_type": "granite", "architectures": ["GraniteForCausalLM"], "hidden_size": 4096, "intermediate_size": 12800,
        "num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 49159,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 10000000.0, "tie_word_embeddings": True,
        "attention_multiplier": 0.0078125, "embedding_multiplier": 12.0, "logits_scaling": 16.0, "residual_multiplier": 0.22,
    },
    "gemma2_9b": SHAPES["gemma2_9b"]
    | {
        "sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "hidden_activation": "gelu_pytorch_tanh",
    },
    "deepseek_v2_lite": {
        "model_type": "deepseek_v2", "architectures": ["DeepseekV2ForCausalLM"], "hidden_size": 2048,
        "intermediate_size": 10944, "moe_intermediate_size": 1408, "num_hidden_layers": 27, "num_attention_heads": 16,
        "num_key_value_heads": 16, "q_lora_rank": None, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
        "v_head_dim": 128, "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6, "n_group": 1,
        "topk_group": 1, "topk_method": "greedy", "norm_topk_prob": False, "routed_scaling_factor": 1.0,
        "first_k_dense_replace": 1, "vocab_size": 102400, "max_position_embeddings": 163840, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "tie_word_embeddings": False, **_yarn(40.0, mscale=0.707, mscale_all_dim=0.707),
    },
    "gpt_oss_20b": {
        "model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "hidden_size": 2880, "intermediate_size": 2880,
        "num_hidden_layers": 24, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64,
        "num_local_experts": 32, "num_experts_per_tok": 4, "vocab_size": 201088, "max_position_embeddings": 131072,
        "sliding_window": 128, "layer_types": _ALTERNATING * 12, "attention_bias": True, "rms_norm_eps": 1e-5,
        "rope_theta": 150000.0, "swiglu_limit": 7.0, "tie_word_embeddings": False, **_yarn(32.0, truncate=False),
    },
    "qwen3_30b_a3b": {
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 2048, "intermediate_size": 6144,
        "moe_intermediate_size": 768, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4,
        "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True, "decoder_sparse_step": 1,
        "vocab_size": 151936, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
    },
    "mixtral_8x7b": {
        "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8,
        "num_experts_per_tok": 2, "vocab_size": 32000, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0, "sliding_window": None, "tie_word_embeddings": False,
    },
    "llama3_70b": _LLAMA3_70B,
    "llama3_1_70b": SHAPES["llama3_1_70b"] | _scaled(8.0),
}  # fmt: skip
"""Preset -> its config.json, the smallest first. Phi 3.5 has the rotary embeddings of Phi 3, which need no 48 factors."""

IN_FOUR_BITS = {
    "gemma2_9b_bnb_4bit": "gemma2_9b",
    "llama3_1_8b_bnb_4bit": "llama3_1_8b",
    "llama3_2_1b_bnb_4bit": "llama3_2_1b",
    "llama3_2_3b_bnb_4bit": "llama3_2_3b",
    "llama3_8b_bnb_4bit": "llama3_8b",
    "mistral_7b_bnb_4bit": "mistral_7b",
    "phi3_5_mini_bnb_4bit": "phi3_5_mini",
    "qwen2_5_7b_bnb_4bit": "qwen2_5_7b",
    "qwen3_8b_bnb_4bit": "qwen3_8b",
}
"""Preset that is stored in 4 bits -> the preset whose row of QLoRA has the same shapes in the same 4 bits."""

_SMALL: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "num_attention_heads": 4, "head_dim": 16,
    "vocab_size": 512, "max_position_embeddings": 512, "num_local_experts": 4, "n_routed_experts": 4, "kv_lora_rank": 16,
    "num_experts": 4,
    "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16, "query_pre_attn_scalar": 16,
}  # fmt: skip
_TINY_LAYERS = 2


def tiny(config: dict[str, Any]) -> dict[str, Any]:
    """The same architecture with tiny widths and two layers, which a CPU trains in a second.

    Args:
        config: one of `FAMILIES`.
    """
    small = config | {name: value for name, value in _SMALL.items() if name in config}
    heads, keys = config["num_attention_heads"], config["num_key_value_heads"]
    small["num_key_value_heads"] = 4 if keys == heads else 2
    if config.get("sliding_window"):
        small["sliding_window"] = 32
    if "num_experts_per_tok" in config:
        small["num_experts_per_tok"] = 2
    return cut(small, _TINY_LAYERS)


def cut(config: dict[str, Any], layers: int) -> dict[str, Any]:
    """The same config with its first layers only.

    Args:
        config: one of `FAMILIES`.
        layers: how many.
    """
    shorter = config | {"num_hidden_layers": layers}
    if "layer_types" in config:
        shorter["layer_types"] = config["layer_types"][:layers]
    return shorter


def is_mixture(config: dict[str, Any]) -> bool:
    """Whether the model is a mixture of experts."""
    return any(name in config for name in ("num_local_experts", "n_routed_experts", "num_experts"))


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Write config.json, and a small tokenizer in which every row of the embedding has a token."""
    import json

    from benchmarks.shapes import _fill_vocabulary
    from hub.testing import tokenizer

    tokenizer().save_pretrained(folder)
    _fill_vocabulary(folder / "tokenizer.json", config["vocab_size"])
    (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": "bfloat16"}), encoding="utf-8")
