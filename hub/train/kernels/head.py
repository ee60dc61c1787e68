"""A fused output layer: the head and its cross entropy in one, with logits of a few rows at a time only.

The gradient of the logits (softmax minus one-hot) is known as soon as the logits are. So both products of the backward pass
are computed at once, while a chunk of logits exists. What is saved for the backward pass is as large as the layer's input
and weight. The idea is that of Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models" (arXiv 2411.09009),
section 3.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch

from hub.train.kernels.patches import Edits, Patch, patches_of
from hub.train.kernels.structure import base_of

CHUNK_BYTES = 2**27
"""Logits at a time: enough rows that products are fast. Twice as many if the weight is trained, since each chunk reads and
writes its whole gradient."""


class FusedHead(Patch):
    """The output layer computes the loss: within `on(targets)` it returns their summed cross entropy.

    Args:
        head: a linear layer, with or without a bias.
    """

    def __init__(self, head: torch.nn.Module) -> None:
        self._head = head
        self._plain: Callable[[torch.Tensor], torch.Tensor] = head.forward
        self._targets: torch.Tensor | None = None

    def apply(self, edits: Edits) -> None:
        self._plain = self._head.forward
        edits.assign(self._head, "forward", self._forward)

    def report(self, plan: dict[str, Any]) -> None:
        plan["fused_head"] = True

    def _forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self._targets is None:
            return self._plain(hidden)
        hidden = hidden.flatten(0, -2)
        if not len(self._targets):
            return hidden.float().sum() * 0.0
        if torch.is_autocast_enabled(hidden.device.type):
            hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
        return linear_cross_entropy(hidden, self._head.weight, getattr(self._head, "bias", None), self._targets)

    @contextmanager
    def on(self, targets: torch.Tensor) -> Iterator[None]:
        """Within it the model's `logits` are the summed loss of these targets."""
        self._targets = targets
        try:
            yield
        finally:
            self._targets = None


def fused_head(model: torch.nn.Module) -> FusedHead | None:
    """Return the model's fused output layer; None if the output layer is its own."""
    return patches_of(model).find(FusedHead)


def can_fuse_head(model: torch.nn.Module) -> bool:
    """Whether the model's output layer is a plain linear one."""
    return type(base_of(model).get_output_embeddings()) is torch.nn.Linear


def linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
) -> torch.Tensor:
    """Sum of the cross entropies of `hidden @ weight.T + bias`, in nats. Scalar, float32.

    Products are made in the type of `hidden`; losses and the gradients of weight and bias are summed in float32.

    Args:
        hidden: (N, H), N > 0.
        weight: (V, H), in any type.
        bias: (V,) or None.
        targets: (N,) integers below V.
    """
    if not torch.is_grad_enabled():
        hidden, weight, bias = hidden.detach(), weight.detach(), None if bias is None else bias.detach()
    loss: torch.Tensor = _LinearCrossEntropy.apply(hidden, weight, bias, targets)
    return loss


class _LinearCrossEntropy(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
    ) -> torch.Tensor:
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        loss_and_gradient = _way(hidden.device.type, hidden.dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            used = weight.to(hidden.dtype)
            loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
            grad_hidden = torch.empty_like(hidden) if needs_hidden else None
            grad_weight = grad_bias = None
            rows = max(1, CHUNK_BYTES * (1 + needs_weight) // (len(used) * used.element_size()))
            rows = -(-len(hidden) // -(-len(hidden) // rows))
            for start in range(0, len(hidden), rows):
                part = hidden[start : start + rows]
                logits = part @ used.T
                if bias is not None:
                    logits += bias.to(logits.dtype)
                chunk_loss, gradient = loss_and_gradient(logits, targets[start : start + rows])
                loss += chunk_loss
                del logits
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
        return *scaled, None


def _loss_and_gradient(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross entropy of (n, V) logits, and its gradient in their type."""
    log_probabilities = torch.log_softmax(logits, -1, dtype=torch.float32)
    targets = targets.unsqueeze(-1)
    loss = -log_probabilities.gather(-1, targets).sum()
    gradient = log_probabilities.exp_()
    gradient.scatter_(-1, targets, gradient.gather(-1, targets) - 1)
    return loss, gradient.to(logits.dtype)


@cache
def kernel_problem(device_type: str) -> str:
    """Return why the loss kernel does not work on such a device; empty if it does. Tried, since Triton needs a compiler."""
    if device_type != "cuda" or find_spec("triton") is None:
        return "there is no GPU with Triton"
    from hub.train.kernels.loss_kernel import loss_and_gradient

    try:
        loss, _ = loss_and_gradient(
            torch.zeros(1, 2, device=device_type), torch.zeros(1, dtype=torch.int64, device=device_type)
        )
        return "" if abs(float(loss) - math.log(2)) < 1e-6 else f"it gives {float(loss)} for the logarithm of 2"
    except Exception as error:  # whatever a compiler raises, plain operations do the same
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _way(device_type: str, dtype: torch.dtype) -> Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Return what computes the loss of a chunk of logits: one kernel, or plain operations. Either may overwrite them."""
    if dtype != torch.float64 and not kernel_problem(device_type):
        from hub.train.kernels.loss_kernel import loss_and_gradient

        return loss_and_gradient
    return _loss_and_gradient


def _add_product(total: torch.Tensor | None, gradient: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Return `total + gradient.T @ hidden`, summed in float32."""
    if gradient.is_cuda and gradient.dtype != torch.float32:
        if total is None:
            return torch.mm(gradient.T, hidden, out_dtype=torch.float32)
        return torch.addmm(total, gradient.T, hidden, out_dtype=torch.float32, out=total)
    product = (gradient.T @ hidden).float()
    return product if total is None else total.add_(product)
