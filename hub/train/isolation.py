"""May this model's samples be packed into one row? Found by trying, on the model itself, before training.

A packed row is right only if no token sees another sample. Position ids that begin anew tell transformers so; whether a
model's attention (or convolution, or recurrence) listens to them is measured here: the first of two packed samples is
changed, and the second one's logits must stay as they were, and be those that it has alone.
"""

from typing import Any

import numpy as np
import torch

from hub.data.prepare import Sample
from hub.train.collate import pack

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""Largest difference that is rounding, relative to the spread of the logits. A leak is of the order of 1."""


@torch.no_grad()
def leak(model: Any, vocab_size: int, device: torch.device, dtype: torch.dtype) -> float:
    """How much a packed neighbour, or being packed at all, changes a sample's logits, relative to their spread.

    Returns:
        Largest difference over the standard deviation of the logits; infinity when the model refuses position ids.
    """
    rng = np.random.default_rng(0)

    def sample(length: int) -> Sample:
        ids = rng.integers(0, vocab_size, length).astype(np.int32)
        return Sample(ids, np.ones(length, dtype=bool), "")

    first, other, second = sample(7), sample(7), sample(9)

    def logits(*samples: Sample) -> torch.Tensor:
        batch = pack(samples).to(device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            output = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
        return output[0, -len(second) :].float()

    was_training = model.training
    model.eval()
    try:
        alone, packed, changed = logits(second), logits(first, second), logits(other, second)
    except TypeError:
        return float("inf")
    finally:
        model.train(was_training)
    spread = alone.std().clamp_min(1e-12)
    return max(float((packed - changed).abs().max() / spread), float((packed - alone).abs().max() / spread))


def can_pack(model: Any, vocab_size: int, device: torch.device, dtype: torch.dtype) -> tuple[bool, str]:
    """Whether packing is safe for this model, and the reason in words."""
    found, bound = leak(model, vocab_size, device, dtype), TOLERANCE[dtype]
    if found <= bound:
        return True, f"packed samples do not see each other (difference {found:.1e} of the logits' spread)"
    return False, f"packed samples would see each other (difference {found:.1e} of the logits' spread, allowed {bound:.0e})"
