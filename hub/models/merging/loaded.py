"""The way for adapters and families that can't be merged tensor by tensor: the model is loaded, and PEFT merges."""

from pathlib import Path
from typing import Any

import torch

from hub.config.schema import ModelConfig
from hub.errors import LaunchError, ModelError, first_line
from hub.models import load
from hub.models.save import save_whole_model
from hub.models.structure import input_embeddings
from hub.models.tokens import resize_embeddings, vocabulary_of


def merge_loaded(base: Path, adapter: Path, folder: Path, dtype: torch.dtype, cfg: ModelConfig) -> tuple[int, int]:
    """Load a model in float32, let PEFT merge its adapter, and save it.

    Args:
        base: local folder of the base.
        adapter: folder of the adapter.
        folder: receives weights and config.
        dtype: of the stored weights.
        cfg: options of the base.

    Returns:
        The number of tensors, and of those that are not as in the base.

    Raises:
        ModelError: PEFT can't merge it, or it changes nothing.
        LaunchError: peft is not installed.
    """
    try:
        from peft import PeftModel
    except ImportError:
        raise LaunchError(f"{adapter} is an adapter, which needs peft. Type pip install peft") from None
    model: Any = load.load_causal_lm(cfg, base, "cpu", torch.float32)
    tokenizer = load.load_tokenizer(cfg, adapter if (adapter / "tokenizer_config.json").is_file() else base)
    if cfg.changes_vocab:
        resize_embeddings(model, vocabulary_of(cfg, base, tokenizer), cfg)
    before = {name: _mark(tensor) for name, tensor in model.state_dict().items()}
    try:
        merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)
    except (OSError, ValueError, RuntimeError, KeyError, NotImplementedError) as error:
        raise ModelError(f"{adapter}: this adapter can't be merged: {first_line(error)}") from None
    weights = merged.state_dict()
    num_changed = sum(before.get(name) != _mark(tensor) for name, tensor in weights.items())
    if not num_changed:
        raise ModelError(f"{adapter}: the merged model is the base, so something of the adapter was lost. Nothing was written")
    for name, tensor in weights.items():
        if tensor.is_floating_point() and (largest := float(tensor.abs().max())) > torch.finfo(dtype).max:
            raise too_large(name, largest, dtype)
    head: Any = merged.get_output_embeddings()
    if head is not None and head.weight is not input_embeddings(merged).weight:
        merged.config.get_text_config().tie_word_embeddings = merged.config.tie_word_embeddings = False
    save_whole_model(merged, tokenizer, folder, dtype, weights, base)
    return len(weights), num_changed


def too_large(name: str, value: float, dtype: torch.dtype) -> ModelError:
    """The error for a value that would become infinite."""
    kind = str(dtype).removeprefix("torch.")
    return ModelError(
        f"{name}: the value {value:.6g} does not fit into {kind}, whose largest is {torch.finfo(dtype).max:.6g}. "
        "Type dtype=bfloat16. Nothing was written"
    )


def _mark(tensor: torch.Tensor) -> tuple[tuple[int, ...], float, float]:
    """Numbers by which a change of a tensor shows."""
    values = tensor.double()
    return tuple(tensor.shape), float(values.sum()), float(values.square().sum())
