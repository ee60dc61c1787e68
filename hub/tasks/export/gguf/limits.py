"""What llama.cpp computes otherwise than transformers by design, whatever the file says. Read from a model's config.

Each line says from when on it shows, and what works instead. The check can't see all of it: its rows may be too short.
"""

from collections.abc import Mapping
from typing import Any


def limits(config: Mapping[str, Any]) -> list[str]:
    """A line for each thing that llama.cpp does otherwise with this model. Empty: nothing is known.

    Args:
        config: as in config.json.
    """
    return [line for line in (_head(config), _scale(config), _window(config), _long_rope(config)) if line]


def _head(config: Mapping[str, Any]) -> str | None:
    """Gemma's output layer: the converter drops it (conversion/gemma.py), and llama.cpp takes the embeddings in its place."""
    if config.get("model_type") not in ("gemma", "gemma2") or config.get("tie_word_embeddings", True):
        return None
    return "llama.cpp has no output layer of its own for Gemma, and this model's is not tied to its embeddings. Take to=merged"


def _scale(config: Mapping[str, Any]) -> str | None:
    """The scale of Gemma's attention: llama.cpp takes `head_dim`, and the width by heads in the 27B models alone."""
    scalar, head = config.get("query_pre_attn_scalar"), config.get("head_dim")
    if config.get("model_type") not in ("gemma2", "gemma3_text") or scalar == head or not scalar or not head:
        return None
    if config.get("num_hidden_layers") in (46, 62):
        return None
    return (
        f"llama.cpp scales attention by the width of a head ({head}), and this model has query_pre_attn_scalar={scalar}. "
        "Take to=merged"
    )


def _window(config: Mapping[str, Any]) -> str | None:
    """Phi-3's sliding window: llama.cpp reads it and switches it off (src/models/phi3.cpp)."""
    window, longest = config.get("sliding_window"), config.get("max_position_embeddings") or 0
    if config.get("model_type") != "phi3" or not window or window >= longest:
        return None
    return (
        f"llama.cpp leaves out this model's sliding window of {window:,} tokens, so answers to longer texts differ from "
        f"training. For these take to=merged; for llama.cpp keep the context at {window:,} tokens (-c {window}, Ollama: "
        f"num_ctx {window})"
    )


def _long_rope(config: Mapping[str, Any]) -> str | None:
    """Rope factors: chosen by the size of the context (`llama_model::get_rope_factors`), and by the text in transformers."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type")) not in ("longrope", "su"):
        return None
    original = rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
    if not original:
        return None
    return (
        f"llama.cpp takes the rope factors of long texts if its context is larger than {original:,} tokens, whatever the text. "
        f"For texts up to this length set the context to {original:,} (-c {original}, Ollama: num_ctx {original})"
    )
