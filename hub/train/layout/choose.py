"""Which of the fast ways of this folder a run takes, and why. Each is tried on the model itself before it is kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hub.config.option import AUTO
from hub.data.prepare import Sample
from hub.run import ASKED_FOR
from hub.train.batch.collate import MicroBatch, pack
from hub.train.kernels import flash4
from hub.train.kernels import recompute as kernels
from hub.train.kernels.attention import Kernel, flash_attention_4, varlen_attention
from hub.train.kernels.head import FusedHead, kernel_problem
from hub.train.layout.isolation import can_pack
from hub.train.losses.causal_lm import causal_lm_loss, takes_positions

WORTH_COMPILING = 5e15
"""Parameters times tokens of a run from which on compiling (half a minute or so) pays."""

HEAD_TOLERANCE = 2e-2
"""Largest relative difference of the fused loss that passes as rounding of the half-precision logits."""


@dataclass(frozen=True)
class Attention:
    """How a model's samples see themselves and no other."""

    name: str
    """`variable-length`, with the kernel's name if it is not torch's, or the model's own."""

    because: str
    packed: bool
    """Whether several samples are packed into a row."""

    packed_because: str
    variable_length: bool = False
    """Whether its work on a packed row grows with each sample's own length."""


def choose_attention(model: Any, vocab_size: int, device: torch.device, dtype: torch.dtype, long: bool = False) -> Attention:
    """The attention that a run takes, and whether samples are packed with it.

    On a GPU in half precision variable-length attention is taken where the model isolates packed samples with it: that of
    flash-attn-4 in runs that are worth its compiling (`long`), or torch's.
    """
    base = kernels.base_of(model)
    own = str(getattr(base.config, "_attn_implementation", None))
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16) or own == "eager":
        because = "variable-length attention needs a GPU, half precision, and a model that is not set to eager attention"
        return Attention(own, because, *can_pack(model, vocab_size, device, dtype))
    problem = flash4.problem(base.config.get_text_config(), device, dtype) if long else "the run is too short for its compiling"
    because = f"torch's; not FlashAttention 4: {problem or 'packed samples would see each other'}"
    known: list[tuple[str, str, Kernel | None]] = [("variable-length", because, None)]
    if not problem:
        because = "the fastest known for this GPU and heads of this size"
        known.insert(0, ("variable-length, FlashAttention 4", because, flash_attention_4()))
    for name, because, kernel in known:
        with varlen_attention(model, kernel) as keep:
            packed, packed_because = can_pack(model, vocab_size, device, dtype)
            if packed:
                keep()
                return Attention(name, because, packed, packed_because, variable_length=True)
    because = "packed samples would see each other with variable-length attention, or it lacks what the model needs"
    return Attention(own, because, *can_pack(model, vocab_size, device, dtype))


def choose_head(model: Any, vocab_size: int, device: torch.device, dtype: torch.dtype, packed: bool) -> tuple[bool, str]:
    """Whether the output layer and its loss are one, and why. The layer is set up for it if so."""
    if device.type != "cuda":
        return False, "it runs on a GPU only"
    if not packed or not takes_positions(kernels.base_of(model).__class__) or not kernels.can_fuse_head(model):
        return False, "samples are padded, or the model's output layer is of another kind"
    batch = pack(_any_samples(vocab_size)).to(device)
    plain = _loss(model, batch, dtype)
    head = FusedHead(kernels.base_of(model).get_output_embeddings())
    fused = _loss(model, batch, dtype)
    difference = abs(fused - plain) / max(abs(plain), 1e-6)
    if difference <= HEAD_TOLERANCE:
        problem = kernel_problem(device.type)
        slower = f". Its loss is made of plain operations, which is slower: {problem}" if problem else ""
        return True, f"same loss as the plain layer's (relative difference {difference:.0e}){slower}"
    head.remove()
    return False, f"the fused layer's loss differs (relative difference {difference:.0e})"


def choose_compile(asked: str, num_parameters: int, num_tokens: float, device: torch.device) -> tuple[bool, str]:
    """Whether the layers are compiled, and why.

    Args:
        asked: auto, layers or none.
        num_parameters: of the model.
        num_tokens: that the run will train on.
        device: where it runs.
    """
    if asked != AUTO:
        return asked == "layers", ASKED_FOR
    if device.type != "cuda":
        return False, "it pays on a GPU only"
    worth = num_parameters * num_tokens
    return worth >= WORTH_COMPILING, f"parameters times tokens is {worth:.0e}, compiling pays from {WORTH_COMPILING:.0e} on"


def _any_samples(vocab_size: int) -> Sequence[Sample]:
    rng = np.random.default_rng(0)
    return [
        Sample(rng.integers(0, vocab_size, length).astype(np.int32), np.ones(length, dtype=bool), "") for length in (19, 40)
    ]


@torch.no_grad()
def _loss(model: Any, batch: MicroBatch, dtype: torch.dtype) -> float:
    was_training = model.training
    model.eval()
    try:
        with torch.autocast(batch.input_ids.device.type, dtype, enabled=dtype != torch.float32):
            return float(causal_lm_loss(model, batch))
    finally:
        model.train(was_training)
