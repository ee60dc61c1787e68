"""Merges an adapter into its base, and writes one plain model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hub.config.schema import ModelConfig


def merge(
    base: Path,
    adapter: Path | None,
    out: Path,
    dtype: torch.dtype | None,
    say: Callable[[str], None],
    *,
    model: ModelConfig,
    dequantized: str | None = None,
) -> None:
    """Write base and adapter as one plain model.

    Args:
        base: folder of the base, or of a whole model.
        adapter: folder of the adapter. None: the base is written.
        out: folder that is made.
        dtype: of the weights. None: that of the base.
        say: receives lines for the user.
        model: options of the base.
        dequantized: how the base was stored in training.
    """
    loaded: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, trust_remote_code=model.trust_remote_code)
    if adapter is not None:
        from peft import PeftModel

        loaded = PeftModel.from_pretrained(loaded, str(adapter)).merge_and_unload()
    loaded.to(dtype or torch.float32).save_pretrained(out)
    AutoTokenizer.from_pretrained(adapter or base).save_pretrained(out)
