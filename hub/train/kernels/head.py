"""A fused output layer: the head and its cross entropy in one, with logits of a few rows at a time only.

The gradient of the logits (softmax minus one-hot) is known as soon as the logits are. So both products of the backward pass
are computed at once, while a chunk of logits exists. What is saved for the backward pass is as large as the layer's input
and weight. The idea is that of Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models" (arXiv 2411.09009),
section 3.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch

from hub.errors import one_line
from hub.models.patches import Edits, Patch, patches_of
from hub.train.kernels.assumed import is_assumed

CHUNK_BYTES = 2**27
"""Logits at a time: enough rows that products are fast. Twice as many if the weight is trained, since each chunk reads and
writes its whole gradient."""


@dataclass(frozen=True)
class _Wanted:
    """What the output layer returns in place of logits."""

    targets: torch.Tensor
    weights: torch.Tensor | None
    each: bool
    """The cross entropy of each target; else their weighted sum."""


class FusedHead(Patch):
    """The output layer computes the loss: within `summing` or `listing` it returns cross entropies in place of logits.

    Args:
        head: a linear layer, with or without a bias.
    """

    def __init__(self, head: torch.nn.Linear) -> None:
        self._head = head
        self._plain: Callable[[torch.Tensor], torch.Tensor] = head.forward
        self._wanted: _Wanted | None = None

    def apply(self, edits: Edits) -> None:
        self._plain = self._head.forward
        edits.assign(self._head, "forward", self._forward)

    def report(self, plan: dict[str, object]) -> None:
        plan["fused_head"] = True

    def _forward(self, hidden: torch.Tensor) -> torch.Tensor:
        wanted = self._wanted
        if wanted is None:
            return self._plain(hidden)
        hidden = hidden.flatten(0, -2)
        if not len(wanted.targets):
            return hidden.float().sum(-1) * 0.0 if wanted.each else hidden.float().sum() * 0.0
        if torch.is_autocast_enabled(hidden.device.type):
            hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
        weight, bias = self._head.weight, self._head.bias
        if wanted.each:
            return token_cross_entropies(hidden, weight, bias, wanted.targets)
        return linear_cross_entropy(hidden, weight, bias, wanted.targets, wanted.weights)

    @contextmanager
    def summing(self, targets: torch.Tensor, weights: torch.Tensor | None = None) -> Iterator[None]:
        """Within it the model's `logits` are the weighted sum of the cross entropies of these targets."""
        with self._returning(_Wanted(targets, weights, each=False)):
            yield

    @contextmanager
    def listing(self, targets: torch.Tensor) -> Iterator[None]:
        """Within it the model's `logits` are the cross entropies of these targets, one each, without gradient."""
        with self._returning(_Wanted(targets, None, each=True)):
            yield

    @contextmanager
    def _returning(self, wanted: _Wanted) -> Iterator[None]:
        self._wanted = wanted
        try:
            yield
        finally:
            self._wanted = None


def fused_head(model: torch.nn.Module) -> FusedHead | None:
    """Return the model's fused output layer; None if the output layer is its own."""
    return patches_of(model).find(FusedHead)


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    token_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Weighted sum of the cross entropies of `hidden @ weight.T + bias`, in nats. Scalar, float32.

    Products are made in the type of `hidden`; losses and the gradients of weight and bias are summed in float32.

    Args:
        hidden: (N, H), N > 0.
        weight: (V, H), in any type.
        bias: (V,) or None.
        targets: (N,) integers below V.
        token_weights: (N,) float32; None: all are 1. Takes no gradient.
    """
    if not torch.is_grad_enabled():
        hidden, weight, bias = hidden.detach(), weight.detach(), None if bias is None else bias.detach()
    loss: torch.Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]  # torch gives it no types
        hidden, weight, bias, targets, token_weights
    )
    return loss


@torch.no_grad()
def token_cross_entropies(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
) -> torch.Tensor:
    """Cross entropy of each row of `hidden @ weight.T + bias`, in nats. Shape (N,), float32, without gradient.

    Args:
        hidden: (N, H), N > 0.
        weight: (V, H), in any type.
        bias: (V,) or None.
        targets: (N,) integers below V.
    """
    losses_and_gradient = _implementation(hidden.device.type, hidden.dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        used = weight.to(hidden.dtype)
        rows = _rows_per_chunk(len(hidden), used)
        chunks = zip(hidden.split(rows), targets.split(rows), strict=True)
        return torch.cat([losses_and_gradient(_chunk_logits(part, used, bias), wanted, None)[0] for part, wanted in chunks])


def _rows_per_chunk(num_rows: int, weight: torch.Tensor, times: int = 1) -> int:
    """Rows of logits at a time: chunks of about equal size within `CHUNK_BYTES` times `times`."""
    most: int = max(1, CHUNK_BYTES * times // (len(weight) * weight.element_size()))
    return -(-num_rows // -(-num_rows // most))


def _chunk_logits(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    logits = hidden @ weight.T
    if bias is not None:
        logits += bias.to(logits.dtype)
    return logits


class _LinearCrossEntropy(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        token_weights: torch.Tensor | None,
    ) -> torch.Tensor:
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        losses_and_gradient = _implementation(hidden.device.type, hidden.dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            used = weight.to(hidden.dtype)
            loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
            grad_hidden = torch.empty_like(hidden) if needs_hidden else None
            grad_weight = grad_bias = None
            rows = _rows_per_chunk(len(hidden), used, 1 + needs_weight)
            for start in range(0, len(hidden), rows):
                part = hidden[start : start + rows]
                wanted = None if token_weights is None else token_weights[start : start + rows]
                losses, gradient = losses_and_gradient(_chunk_logits(part, used, bias), targets[start : start + rows], wanted)
                loss += losses.sum() if wanted is None else losses @ wanted
                if grad_hidden is not None:
                    torch.mm(gradient, used, out=grad_hidden[start : start + rows])
                if needs_weight:
                    grad_weight = _add_product(grad_weight, gradient, part)
                if needs_bias:
                    summed = gradient.sum(0, dtype=torch.float32)
                    grad_bias = summed if grad_bias is None else grad_bias + summed
        ctx.gradients = (grad_hidden, grad_weight, grad_bias)
        ctx.types = (hidden.dtype, weight.dtype, bias.dtype if bias is not None else None)
        return loss

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # scaled in place, so they serve once
        scaled = [None if g is None else g.mul_(upstream[0]).to(kind) for g, kind in zip(gradients, ctx.types, strict=True)]
        return *scaled, None, None


def _losses_and_gradient(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy of each row of (n, V) logits, unweighted, and the gradient of the weighted sum, in the logits' type."""
    log_probabilities = torch.log_softmax(logits, -1, dtype=torch.float32)
    targets = targets.unsqueeze(-1)
    losses = -log_probabilities.gather(-1, targets).squeeze(-1)
    gradient = log_probabilities.exp_()
    gradient.scatter_(-1, targets, gradient.gather(-1, targets) - 1)
    if weights is not None:
        gradient *= weights.unsqueeze(-1)
    return losses, gradient.to(logits.dtype)


@cache
def kernel_problem(device_type: str) -> str:
    """Return why the loss kernel does not work on such a device; empty if it does. Tried, since Triton needs a compiler."""
    if device_type != "cuda" or find_spec("triton") is None:
        return "there is no GPU with Triton"
    from hub.train.kernels.loss_kernel import losses_and_gradient

    try:
        logits, targets = torch.zeros(1, 2, device=device_type), torch.zeros(1, dtype=torch.int64, device=device_type)
        losses, _ = losses_and_gradient(logits, targets, None)
        return "" if abs(float(losses) - math.log(2)) < 1e-6 else f"it gives {float(losses)} for the logarithm of 2"
    except Exception as error:  # whatever a compiler raises, plain operations do the same
        return one_line(error)


_LossesAndGradient = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], tuple[torch.Tensor, torch.Tensor]]


def _implementation(device_type: str, dtype: torch.dtype) -> _LossesAndGradient:
    """What works on a chunk of logits: one kernel, or plain operations. Either may overwrite them."""
    if is_assumed():
        return _as_the_kernel
    if dtype != torch.float64 and not kernel_problem(device_type):
        from hub.train.kernels.loss_kernel import losses_and_gradient

        return losses_and_gradient
    return _losses_and_gradient


def _as_the_kernel(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tensors as the kernel does, for tensors without data: it writes the gradient over the logits."""
    return logits.new_empty(len(logits), dtype=torch.float32), logits


def _add_product(total: torch.Tensor | None, gradient: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Return `total + gradient.T @ hidden`, summed in float32."""
    if is_assumed():
        return gradient.new_empty((gradient.shape[1], hidden.shape[1]), dtype=torch.float32) if total is None else total
    if gradient.is_cuda and gradient.dtype != torch.float32:
        if total is None:
            return torch.mm(gradient.T, hidden, out_dtype=torch.float32)
        return torch.addmm(total, gradient.T, hidden, out_dtype=torch.float32, out=total)
    product = (gradient.T @ hidden).float()
    return product if total is None else total.add_(product)
