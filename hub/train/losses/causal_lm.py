"""The loss of a causal language model: cross entropy summed over the loss tokens of a micro-batch.

It is a sum, never a mean: the loop divides by the number of loss tokens of the whole step over all ranks, so that a token
weighs the same in whatever micro-batch and on whatever rank it stands.
"""

import inspect
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

from hub.train.batch.collate import MicroBatch
from hub.train.kernels.attention import sample_bounds, uses_varlen
from hub.train.kernels.head import fused_head
from hub.train.kernels.structure import base_of


def causal_lm_loss(model: Any, batch: MicroBatch) -> torch.Tensor:
    """Sum of the cross entropies, in nats. Scalar, float32, with a gradient path to every weight even without loss tokens.

    Only the positions that count go through the output layer where the model allows it: its result is the largest
    tensor of a training step.
    """
    inputs = model_inputs(model, batch)
    # The positions would have to lie on the GPU of the last layer, where the layers are spread over several.
    select = batch.packed and takes_positions(base_of(model).__class__) and not _is_split(model)
    if select:
        inputs["logits_to_keep"] = batch.loss_positions
        if head := fused_head(model):
            with head.on(batch.targets):
                fused: torch.Tensor = model(**inputs).logits
                return fused
    logits = model(**inputs).logits.flatten(0, 1)
    if not select:
        logits = logits[batch.loss_positions.to(logits.device)]
    return F.cross_entropy(logits.float(), batch.targets.to(logits.device), reduction="sum")


def model_inputs(model: Any, batch: MicroBatch) -> dict[str, Any]:
    """The keywords of the model's forward for a micro-batch."""
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
    if not batch.packed:
        inputs["attention_mask"] = batch.attention_mask
    elif uses_varlen(model):
        inputs |= sample_bounds(batch)
    return inputs


@cache
def takes_positions(model_class: Any) -> bool:
    """Whether a model's forward can compute logits at chosen positions only (`logits_to_keep` as a tensor)."""
    return "logits_to_keep" in inspect.signature(model_class.forward).parameters


def _is_split(model: Any) -> bool:
    return len(set(getattr(model, "hf_device_map", {}).values())) > 1
