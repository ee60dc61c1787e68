"""Layers whose weight stands still while coordinates of its change learn.

The weight is one dense matrix, so a forward pass is that of the plain layer. In the backward pass the gradient of the
coordinates is taken directly: for Delta = Z Q^T it is dZ = dY^T (X Q), and the matrix dY^T X is never formed.
Nothing here has side effects, so torch.compile can trace it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from hub_osft.subspace import oriented

PREFIX = "osft_"
"""Every name that the plugin adds to a model begins so; none of them is saved with it."""


class _Linear(torch.autograd.Function):
    """y = x W^T + b with a gradient for x, b and the coordinates, and none for W."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        coordinates: torch.Tensor,
        free: torch.Tensor | None,
        on_input: bool,
    ) -> torch.Tensor:
        """Args: x (..., in), weight (out, in), coordinates and Q as in `subspace`; `on_input`: the columns of A are inputs."""
        ctx.on_input, ctx.dtype, ctx.bias_dtype = on_input, coordinates.dtype, None if bias is None else bias.dtype
        ctx.save_for_backward(x, weight, free)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, free = ctx.saved_tensors
        grad = grad_outputs[0].to(weight.dtype)
        grad_x = grad @ weight if ctx.needs_input_grad[0] else None
        flat_grad, flat_x = grad.flatten(0, -2), x.flatten(0, -2)
        grad_bias = flat_grad.sum(0).to(ctx.bias_dtype) if ctx.needs_input_grad[2] else None
        first, second = (flat_grad, flat_x) if ctx.on_input else (flat_x, flat_grad)
        if free is not None:
            second = second @ free.to(second.dtype)
        grad_coordinates = (first.mT @ second).to(ctx.dtype)
        return grad_x, None, grad_bias, grad_coordinates, None, None


class _Weight(torch.autograd.Function):
    """A weight (..., a, b) as it is, whose gradient goes to the coordinates: for layers that the plugin can't see into."""

    @staticmethod
    def forward(
        ctx: Any, weight: torch.Tensor, coordinates: torch.Tensor, free: torch.Tensor | None, left: bool
    ) -> torch.Tensor:
        ctx.left, ctx.dtype = left, coordinates.dtype
        ctx.save_for_backward(free)
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (free,) = ctx.saved_tensors
        grad = oriented(grad_outputs[0], ctx.left)
        if free is not None:
            grad = grad @ free.to(grad.dtype)
        return None, grad.to(ctx.dtype), None, None


class OsftLinear(nn.Module):
    """A linear layer (or GPT-2's Conv1D, whose weight lies the other way) that learns coordinates of its weight's change."""

    osft_free: torch.Tensor | None

    def __init__(self, layer: Any, coordinates: torch.Tensor, free: torch.Tensor | None, left: bool, conv1d: bool) -> None:
        """
        Args:
            layer: the layer; its `weight` and `bias` are taken over.
            coordinates: Z or Delta, float32, as in `subspace`.
            free: Q, or None when the coordinates are the whole change.
            left: whether Q acts on the first dimension of the stored weight.
            conv1d: whether the weight is stored as (in, out).
        """
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.osft_coordinates = nn.Parameter(coordinates)
        self.register_buffer("osft_free", free, persistent=False)
        self._left, self._conv1d = left, conv1d

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight.mT if self._conv1d else self.weight
        bias = None if self.bias is None else self.bias.to(weight.dtype)
        x, on_input = x.to(weight.dtype), self._left == self._conv1d
        result: torch.Tensor = _Linear.apply(x, weight, bias, self.osft_coordinates, self.osft_free, on_input)
        return result


class OsftFactored(nn.Module):
    """A linear layer with the low part of its weight as three trained factors: W = W_high + U S V, as the paper has it."""

    osft_high: torch.Tensor

    def __init__(
        self,
        layer: Any,
        high: torch.Tensor,
        factors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        transposed: bool,
        conv1d: bool,
    ) -> None:
        """
        Args:
            layer: the layer; its `weight` is kept for saving, its `bias` taken over.
            high: what stays of A, (M, p) float32.
            factors: U (M, f), S (f,), V (f, p), float32.
            transposed: whether A is the stored weight's transpose.
            conv1d: whether the weight is stored as (in, out).
        """
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.register_buffer("osft_high", high, persistent=False)
        self.osft_left, self.osft_scale, self.osft_right = (nn.Parameter(factor) for factor in factors)
        self._transposed, self._conv1d = transposed, conv1d

    def whole(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight as it is stored, put together in `dtype`."""
        left, scale, right = self.osft_left.to(dtype), self.osft_scale.to(dtype), self.osft_right.to(dtype)
        return oriented(self.osft_high.to(dtype) + (left * scale) @ right, self._transposed)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            weight = self.whole(torch.float32).to(self.weight.dtype)
        bias = None if self.bias is None else self.bias.to(weight.dtype)
        return F.linear(x.to(weight.dtype), weight.mT if self._conv1d else weight, bias)


class OsftExperts(nn.Module):
    """Experts whose matrices lie in fused tensors (experts, a, b): each expert's matrix has directions of its own."""

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.osft_inner = experts
        self._left: dict[str, bool] = {}

    def add(self, name: str, coordinates: torch.Tensor, free: torch.Tensor | None, left: bool) -> None:
        """Let the tensor of this name learn coordinates."""
        self.register_parameter(f"osft_coordinates_{name}", nn.Parameter(coordinates))
        self.register_buffer(f"osft_free_{name}", free, persistent=False)
        self._left[name] = left

    def forward(self, *inputs: Any, **named: Any) -> Any:
        weights = {
            name: _Weight.apply(
                getattr(self.osft_inner, name),
                getattr(self, f"osft_coordinates_{name}"),
                getattr(self, f"osft_free_{name}"),
                left,
            )
            for name, left in self._left.items()
        }
        return functional_call(self.osft_inner, weights, inputs, named)


def name_in_plain_model(name: str) -> str | None:
    """The name that a tensor of an OSFT model has in the plain one; None when it has none there."""
    parts = [part for part in name.split(".") if part != "osft_inner"]
    return None if parts[-1].startswith(PREFIX) else ".".join(parts)
