"""May this model's samples be packed into one row? Found by trying, on the model itself, before training.

A packed row is right only if no token sees another sample. Position ids that begin anew tell transformers so; whether a
model's attention (or convolution, or recurrence) listens to them is measured here: the first of two packed samples is
changed, and the second one's logits must stay as they were, and be those that it has alone.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from hub.data.prepare import Sample
from hub.train.batch.collate import MicroBatch, pack
from hub.train.kernels.attention import UnsuitedError
from hub.train.losses.causal_lm import model_inputs

TOLERANCE = 0.1
"""Largest share of a full leak's effect that passes as rounding. bfloat16 rounds to about 0.03, float32 to 1e-5."""

Inputs = Callable[[Any, MicroBatch], dict[str, Any]]


@torch.no_grad()
def leak(model: Any, vocab_size: int, device: torch.device, dtype: torch.dtype, inputs: Inputs = model_inputs) -> float:
    """How much packing changes a sample's logits, as a share of what its neighbour does when it is seen in full.

    Args:
        model: any causal language model.
        vocab_size: tokens are drawn below it.
        device: where the model is.
        dtype: of the arithmetic.
        inputs: the keywords of its forward for a micro-batch.

    Returns:
        The larger of two root mean squares (neighbour changed; packed against alone) over that of two samples run as one
        text. 0 is perfect isolation, about 1 none. Infinity when the model refuses position ids.
    """
    rng = np.random.default_rng(0)

    def sample(length: int) -> Sample:
        return Sample(rng.integers(0, vocab_size, length).astype(np.int32), np.ones(length, dtype=bool), "")

    first, other, second = sample(17), sample(17), sample(23)
    one_text = Sample(np.concatenate([first.input_ids, second.input_ids]), np.ones(40, dtype=bool), "")

    def logits(*samples: Sample) -> torch.Tensor:
        batch = pack(samples).to(device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            output = model(**inputs(model, batch)).logits
        return output[0, -len(second) :].double()

    was_training = model.training
    model.eval()
    try:
        alone, packed, changed, seen = logits(second), logits(first, second), logits(other, second), logits(one_text)
    except (TypeError, UnsuitedError):
        return float("inf")
    finally:
        model.train(was_training)

    def size(difference: torch.Tensor) -> float:
        return float(difference.square().mean().sqrt())

    return max(size(packed - changed), size(packed - alone)) / max(size(seen - alone), 1e-30)


def can_pack(
    model: Any, vocab_size: int, device: torch.device, dtype: torch.dtype, inputs: Inputs = model_inputs
) -> tuple[bool, str]:
    """Whether packing is safe for this model, and the reason in words."""
    found = leak(model, vocab_size, device, dtype, inputs)
    words = f"measured leak {found:.1e}, allowed {TOLERANCE:.0e}"
    if found <= TOLERANCE:
        return True, f"packed samples do not see each other ({words})"
    return False, f"packed samples would see each other ({words})"
