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
from functools import cache, wraps
from importlib.util import find_spec
from typing import Any

import torch

from hub.errors import one_line
from hub.models.patches import Edits, Patch, patches_of
from hub.models.structure import base_of
from hub.train.kernels.assumed import is_assumed
from hub.train.kernels.logit_map import AS_THEY_ARE, LogitMap

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
        model: whose output layer it is. Needed if the model changes logits.
        logit_map: what the model makes of the layer's result, before it returns it as `logits`.
    """

    def __init__(self, head: torch.nn.Linear, model: torch.nn.Module | None = None, logit_map: LogitMap = AS_THEY_ARE) -> None:
        self._head, self.logit_map = head, logit_map
        self._model = None if model is None or logit_map.is_identity else base_of(model)
        self._plain: Callable[[torch.Tensor], torch.Tensor] = head.forward
        self._wanted: _Wanted | None = None
        self._result: torch.Tensor | None = None

    def apply(self, edits: Edits) -> None:
        self._plain = self._head.forward
        edits.assign(self._head, "forward", self._forward)
        if self._model is not None:
            edits.assign(self._model, "forward", self._returning_result(self._model.forward))

    def report(self, plan: dict[str, object]) -> None:
        plan["fused_head"] = True

    def _returning_result(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        """Put the cross entropies in place of what the model made of them: it took them for logits."""

        @wraps(plain)
        def forward(*args: Any, **kwargs: Any) -> Any:
            output = plain(*args, **kwargs)
            if self._wanted is not None:
                output.logits, self._result = self._result, None
            return output

        return forward

    def _forward(self, hidden: torch.Tensor) -> torch.Tensor:
        wanted = self._wanted
        if wanted is None:
            return self._plain(hidden)
        self._result = self._cross_entropy(hidden, wanted)
        return self._result

    def _cross_entropy(self, hidden: torch.Tensor, wanted: _Wanted) -> torch.Tensor:
        hidden = hidden.flatten(0, -2)
        if not len(wanted.targets):
            return hidden.float().sum(-1) * 0.0 if wanted.each else hidden.float().sum() * 0.0
        if torch.is_autocast_enabled(hidden.device.type):
            hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
        weight, bias = self._head.weight, self._head.bias
        if wanted.each:
            return token_cross_entropies(hidden, weight, bias, wanted.targets, self.logit_map)
        return linear_cross_entropy(hidden, weight, bias, wanted.targets, wanted.weights, self.logit_map)

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
            self._wanted = self._result = None


def fused_head(model: torch.nn.Module) -> FusedHead | None:
    """Return the model's fused output layer; None if the output layer is its own."""
    return patches_of(model).find(FusedHead)


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    token_weights: torch.Tensor | None = None,
    logit_map: LogitMap = AS_THEY_ARE,
) -> torch.Tensor:
    """Weighted sum of the cross entropies of `logit_map(hidden @ weight.T + bias)`, in nats. Scalar, float32.

    Products are made in the type of `hidden`; losses and the gradients of weight and bias are summed in float32.

    Args:
        hidden: (N, H), N > 0.
        weight: (V, H), in any type.
        bias: (V,) or None.
        targets: (N,) integers below V.
        token_weights: (N,) float32; None: all are 1. Takes no gradient.
        logit_map: applied to each logit.
    """
    if not torch.is_grad_enabled():
        hidden, weight, bias = hidden.detach(), weight.detach(), None if bias is None else bias.detach()
    loss: torch.Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]  # torch gives it no types
        hidden, weight, bias, targets, token_weights, logit_map
    )
    return loss


@torch.no_grad()
def token_cross_entropies(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    logit_map: LogitMap = AS_THEY_ARE,
) -> torch.Tensor:
    """Cross entropy of each row of `logit_map(hidden @ weight.T + bias)`, in nats. Shape (N,), float32, without gradient.

    Args:
        hidden: (N, H), N > 0.
        weight: (V, H), in any type.
        bias: (V,) or None.
        targets: (N,) integers below V.
        logit_map: applied to each logit.
    """
    losses_and_gradient = _implementation(hidden.device.type, hidden.dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        used = weight.to(hidden.dtype)
        rows = _rows_per_chunk(len(hidden), used)
        chunks = zip(hidden.split(rows), targets.split(rows), strict=True)
        made = [losses_and_gradient(_chunk_logits(part, used, bias), wanted, None, logit_map) for part, wanted in chunks]
        return torch.cat([losses for losses, _ in made])


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
        logit_map: LogitMap,
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
                logits = _chunk_logits(part, used, bias)
                losses, gradient = losses_and_gradient(logits, targets[start : start + rows], wanted, logit_map)
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
        return *scaled, None, None, None


def _losses_and_gradient(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None, logit_map: LogitMap
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy of each row of (n, V) mapped logits, unweighted, and the gradient of the weighted sum in the logits."""
    mapped = logits if logit_map.is_identity else logit_map(logits)
    log_probabilities = torch.log_softmax(mapped, -1, dtype=torch.float32)
    targets = targets.unsqueeze(-1)
    losses = -log_probabilities.gather(-1, targets).squeeze(-1)
    gradient = log_probabilities.exp_()
    gradient.scatter_(-1, targets, gradient.gather(-1, targets) - 1)
    if weights is not None:
        gradient *= weights.unsqueeze(-1)
    if logit_map.cap is not None:
        gradient *= 1 - (mapped / logit_map.cap).square()  # the derivative of the hyperbolic tangent
    if logit_map.scale != 1:
        gradient *= logit_map.scale
    return losses, gradient.to(logits.dtype)


@cache
def kernel_problem(device_type: str) -> str:
    """Return why the loss kernel does not work on such a device; empty if it does. Tried, since Triton needs a compiler."""
    if device_type != "cuda" or find_spec("triton") is None:
        return "there is no GPU with Triton"
    from hub.train.kernels.loss_kernel import losses_and_gradient

    try:
        logits, targets = torch.zeros(1, 2, device=device_type), torch.zeros(1, dtype=torch.int64, device=device_type)
        for logit_map in (AS_THEY_ARE, LogitMap(0.5), LogitMap(0.5, 30.0)):
            losses, _ = losses_and_gradient(logits.clone(), targets, None, logit_map)
            if abs(float(losses) - math.log(2)) >= 1e-6:
                return f"it gives {float(losses)} for the logarithm of 2"
        return ""
    except Exception as error:  # whatever a compiler raises, plain operations do the same
        return one_line(error)


_LossesAndGradient = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None, LogitMap], tuple[torch.Tensor, torch.Tensor]]


def _implementation(device_type: str, dtype: torch.dtype) -> _LossesAndGradient:
    """What works on a chunk of logits: one kernel, or plain operations. Either may overwrite them."""
    if is_assumed():
        return _as_the_kernel
    if dtype != torch.float64 and not kernel_problem(device_type):
        from hub.train.kernels.loss_kernel import losses_and_gradient

        return losses_and_gradient
    return _losses_and_gradient


def _as_the_kernel(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None, logit_map: LogitMap
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
