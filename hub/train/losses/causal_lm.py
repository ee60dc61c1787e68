"""The weighted negative log-likelihood of a micro-batch's loss tokens, and their log-probabilities.

The loss is a sum, never a mean. The step divides it by the objective's divisor, counted over all ranks, so a token has the same
weight in every micro-batch and on every rank.
"""

import inspect
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F

from hub.models.structure import base_of
from hub.train.batch.collate import MicroBatch
from hub.train.kernels.attention import sample_bounds, uses_varlen
from hub.train.kernels.head import FusedHead, fused_head

Loss = Callable[[torch.nn.Module, MicroBatch], torch.Tensor]
"""Function of a model and a micro-batch: the weighted sum of the negative log-likelihoods of its loss tokens, a scalar."""


def causal_lm_loss(model: torch.nn.Module, batch: MicroBatch) -> torch.Tensor:
    """Compute the weighted sum of the cross entropies of the loss tokens, in nats. Without weights each counts once.

    The result is a float32 scalar with a gradient path to every weight, even without loss tokens. If the model allows it, the
    output layer computes only the positions with loss, since its result is the largest tensor of a training step.
    """
    if head := _usable_head(model, batch):
        with head.summing(batch.targets, batch.weights):
            return _logits(model, batch)
    if batch.weights is None:
        return _cross_entropy(model, batch, "sum")
    losses = _cross_entropy(model, batch, "none")
    return losses @ batch.weights.to(losses.device)


@torch.no_grad()
def token_log_probabilities(model: torch.nn.Module, batch: MicroBatch) -> torch.Tensor:
    """Compute the log-probability of each loss token, in nats. (n,) float32, without gradient."""
    if head := _usable_head(model, batch):
        with head.listing(batch.targets):
            return -_logits(model, batch)
    return -_cross_entropy(model, batch, "none")


def model_inputs(model: torch.nn.Module, batch: MicroBatch) -> dict[str, object]:
    """Return the keyword arguments of the model's forward for a micro-batch."""
    inputs: dict[str, object] = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
    if not batch.packed:
        inputs["attention_mask"] = batch.attention_mask
    elif uses_varlen(model):
        inputs |= sample_bounds(batch)
    return inputs


def takes_positions(model: torch.nn.Module) -> bool:
    """Return whether a model's forward can compute logits at chosen positions only (`logits_to_keep` as a tensor)."""
    return "logits_to_keep" in _parameters_of(type(base_of(model)).forward)


@cache
def _parameters_of(forward: Callable[..., object]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)


def _cross_entropy(model: torch.nn.Module, batch: MicroBatch, reduction: str) -> torch.Tensor:
    """Compute the cross entropy of the loss tokens, in nats: (n,) or, with the reduction `sum`, a scalar."""
    logits = _logits(model, batch).flatten(0, 1)
    if not _selects(model, batch):
        logits = logits[batch.loss_positions.to(logits.device)]
    return F.cross_entropy(logits.float(), batch.targets.to(logits.device), reduction=reduction)


def _logits(model: torch.nn.Module, batch: MicroBatch) -> torch.Tensor:
    inputs = model_inputs(model, batch)
    if _selects(model, batch):
        inputs["logits_to_keep"] = batch.loss_positions
    logits: torch.Tensor = model(**inputs).logits
    return logits


def _usable_head(model: torch.nn.Module, batch: MicroBatch) -> FusedHead | None:
    return fused_head(model) if _selects(model, batch) else None


def _selects(model: torch.nn.Module, batch: MicroBatch) -> bool:
    """Return whether the output layer computes the loss positions only.

    If the layers are split over several GPUs it does not: the positions would have to be on the last GPU.
    """
    return batch.packed and takes_positions(model) and not _is_split(model)


def _is_split(model: torch.nn.Module) -> bool:
    return len(set(getattr(model, "hf_device_map", {}).values())) > 1
