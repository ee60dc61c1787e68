"""Whether a model isolates packed samples from each other. Measured on the model itself, before training.

A packed row is correct only if no token sees another sample. Position ids that restart at 0 mark the samples for
transformers. Here is measured whether a model's attention (or convolution, or recurrence) respects them: the first of two
packed samples is changed, and the second one's logits must not change, and must equal those that it has alone.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from hub.data.prepare import Sample
from hub.train.batch.collate import MicroBatch, pack
from hub.train.kernels.attention import UnsuitedError
from hub.train.losses.causal_lm import model_inputs

TOLERANCE = 0.1
"""Largest fraction of a full leak's effect that passes as rounding. bfloat16 rounds to about 0.03, float32 to 1e-5."""

Inputs = Callable[[torch.nn.Module, MicroBatch], Mapping[str, object]]


@torch.no_grad()
def leak(
    model: torch.nn.Module, vocab_size: int, device: torch.device, dtype: torch.dtype, inputs: Inputs = model_inputs
) -> float:
    """Measure how much packing changes a sample's logits, as a fraction of the effect of a neighbor that is fully visible.

    Args:
        model: any causal language model.
        vocab_size: upper bound of the random tokens.
        device: of the model.
        dtype: of the arithmetic.
        inputs: returns the keywords of the model's forward for a micro-batch.

    Returns:
        The larger of two root mean squares (neighbor changed; packed against alone) over that of two samples run as one
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
            output: torch.Tensor = model(**inputs(model, batch)).logits
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
    model: torch.nn.Module, vocab_size: int, device: torch.device, dtype: torch.dtype, inputs: Inputs = model_inputs
) -> tuple[bool, str]:
    """Decide whether packing is safe for this model. Returns the reason too."""
    measured = leak(model, vocab_size, device, dtype, inputs)
    words = f"measured leak {measured:.1e}, allowed {TOLERANCE:.0e}"
    if measured <= TOLERANCE:
        return True, f"packed samples do not see each other ({words})"
    return False, f"packed samples would see each other ({words})"
