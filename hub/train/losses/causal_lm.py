"""The weighted negative log-likelihood of a micro-batch's loss tokens, and their log-probabilities.

It is a sum, never a mean: the step divides by the objective's divisor, counted over all ranks, so that a token weighs the same
in whatever micro-batch and on whatever rank it stands.
"""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

from hub.train.batch.collate import MicroBatch
from hub.train.kernels.attention import sample_bounds, uses_varlen
from hub.train.kernels.head import FusedHead, fused_head
from hub.train.kernels.structure import base_of

Loss = Callable[[Any, MicroBatch], torch.Tensor]
"""A model and a micro-batch to the weighted sum of the negative log-likelihoods of its loss tokens: a scalar."""


def causal_lm_loss(model: Any, batch: MicroBatch) -> torch.Tensor:
    """Weighted sum of the cross entropies of the loss tokens, in nats; without weights each counts once.

    Scalar, float32, with a gradient path to every weight even without loss tokens. Only the positions that count go through the
    output layer where the model allows it: its result is the largest tensor of a training step.
    """
    if head := _usable_head(model, batch):
        with head.summing(batch.targets, batch.weights):
            fused: torch.Tensor = _logits(model, batch)
            return fused
    if batch.weights is None:
        return _cross_entropy(model, batch, "sum")
    losses = _cross_entropy(model, batch, "none")
    return losses @ batch.weights.to(losses.device)


@torch.no_grad()
def token_log_probabilities(model: Any, batch: MicroBatch) -> torch.Tensor:
    """Log-probability of each loss token, in nats. Shape (n,), float32, without gradient."""
    if head := _usable_head(model, batch):
        with head.listing(batch.targets):
            losses: torch.Tensor = _logits(model, batch)
            return -losses
    return -_cross_entropy(model, batch, "none")


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


def _cross_entropy(model: Any, batch: MicroBatch, reduction: str) -> torch.Tensor:
    """Cross entropy of the loss tokens, in nats: (n,) or, with the reduction `sum`, a scalar."""
    logits = _logits(model, batch).flatten(0, 1)
    if not _selects(model, batch):
        logits = logits[batch.loss_positions.to(logits.device)]
    return F.cross_entropy(logits.float(), batch.targets.to(logits.device), reduction=reduction)


def _logits(model: Any, batch: MicroBatch) -> torch.Tensor:
    inputs = model_inputs(model, batch)
    if _selects(model, batch):
        inputs["logits_to_keep"] = batch.loss_positions
    logits: torch.Tensor = model(**inputs).logits
    return logits


def _usable_head(model: Any, batch: MicroBatch) -> FusedHead | None:
    return fused_head(model) if _selects(model, batch) else None


def _selects(model: Any, batch: MicroBatch) -> bool:
    """Whether the output layer computes the loss positions only. Not where the layers are spread over several GPUs: the
    positions would have to lie on the last one.
    """
    return batch.packed and takes_positions(base_of(model).__class__) and not _is_split(model)


def _is_split(model: Any) -> bool:
    return len(set(getattr(model, "hf_device_map", {}).values())) > 1
