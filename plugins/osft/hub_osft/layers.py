"""Layers with a frozen weight and trained coordinates of its change.

The weight is one dense matrix, so the forward pass is that of the plain layer. The backward pass computes the gradient of the
coordinates directly: for Delta = Z Q^T it is dZ = dY^T (X Q), and the matrix dY^T X is never formed.
Nothing here has side effects, so torch.compile can trace it.
"""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from hub_osft.subspace import oriented

PREFIX = "osft_"
"""Prefix of every name that the plugin adds to a model. None of these tensors is saved with the model."""


class _Context(Protocol):
    """What the forward and the backward pass of `_Linear` share, and of `_Weight` in part."""

    on_input: bool
    left: bool
    dtype: torch.dtype
    bias_dtype: torch.dtype | None
    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Any, ...]
    """Tensors, or None where the forward pass saved None."""

    def save_for_backward(self, *tensors: torch.Tensor | None) -> None: ...


class _Linear(torch.autograd.Function):
    """y = x W^T + b with a gradient for x, b and the coordinates, and none for W."""

    @staticmethod
    def forward(
        ctx: _Context,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        coordinates: torch.Tensor,
        free: torch.Tensor | None,
        on_input: bool,
    ) -> torch.Tensor:
        """Take x (..., in), weight (out, in), coordinates and Q as in `subspace`; `on_input`: the columns of A are inputs."""
        ctx.on_input, ctx.dtype, ctx.bias_dtype = on_input, coordinates.dtype, None if bias is None else bias.dtype
        ctx.save_for_backward(x, weight, free)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: _Context, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
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
    """The identity on a weight (..., a, b), whose gradient goes to the coordinates. For layers whose forward pass is opaque."""

    @staticmethod
    def forward(
        ctx: _Context, weight: torch.Tensor, coordinates: torch.Tensor, free: torch.Tensor | None, left: bool
    ) -> torch.Tensor:
        ctx.left, ctx.dtype = left, coordinates.dtype
        ctx.save_for_backward(free)
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: _Context, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (free,) = ctx.saved_tensors
        grad = oriented(grad_outputs[0], ctx.left)
        if free is not None:
            grad = grad @ free.to(grad.dtype)
        return None, grad.to(ctx.dtype), None, None


class OsftLinear(nn.Module):
    """A linear layer (or GPT-2's Conv1D, whose weight is transposed) that learns coordinates of its weight's change."""

    osft_free: torch.Tensor | None

    def __init__(
        self, layer: nn.Linear | Conv1D, coordinates: torch.Tensor, free: torch.Tensor | None, left: bool, conv1d: bool
    ) -> None:
        """Replace a layer.

        Args:
            layer: the layer; its `weight` and `bias` are reused.
            coordinates: Z or Delta, float32, as in `subspace`.
            free: Q. None: the coordinates are the full change.
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
        inputs = (x, weight, bias, self.osft_coordinates, self.osft_free, on_input)
        result: torch.Tensor = _Linear.apply(*inputs)  # type: ignore[no-untyped-call]  # torch gives it no types
        return result


class OsftFactored(nn.Module):
    """A linear layer with the low part of its weight as three trained factors: W = W_high + U S V, as in the paper."""

    osft_high: torch.Tensor

    def __init__(
        self,
        layer: nn.Linear | Conv1D,
        high: torch.Tensor,
        factors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        transposed: bool,
        conv1d: bool,
    ) -> None:
        """Replace a layer.

        Args:
            layer: the layer; its `weight` is reused for saving, its `bias` in passes.
            high: the fixed part of A, (M, p) float32.
            factors: U (M, f), S (f,), V (f, p), float32.
            transposed: whether A is the stored weight's transpose.
            conv1d: whether the weight is stored as (in, out).
        """
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.register_buffer("osft_high", high, persistent=False)
        self.osft_left, self.osft_scale, self.osft_right = (nn.Parameter(factor) for factor in factors)
        self._transposed, self._conv1d = transposed, conv1d

    def full_weight(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight in its stored orientation, computed in `dtype`."""
        left, scale, right = self.osft_left.to(dtype), self.osft_scale.to(dtype), self.osft_right.to(dtype)
        return oriented(self.osft_high.to(dtype) + (left * scale) @ right, self._transposed)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            weight = self.full_weight(torch.float32).to(self.weight.dtype)
        bias = None if self.bias is None else self.bias.to(weight.dtype)
        return F.linear(x.to(weight.dtype), weight.mT if self._conv1d else weight, bias)


class OsftExperts(nn.Module):
    """Experts with matrices in fused tensors (experts, a, b): each expert's matrix has its own directions."""

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.osft_inner = experts
        self._left: dict[str, bool] = {}

    def add(self, name: str, coordinates: torch.Tensor, free: torch.Tensor | None, left: bool) -> None:
        """Add coordinates for one fused tensor."""
        self.register_parameter(f"osft_coordinates_{name}", nn.Parameter(coordinates))
        self.register_buffer(f"osft_free_{name}", free, persistent=False)
        self._left[name] = left

    def forward(self, *inputs: object, **named: object) -> object:
        weights = {
            name: _Weight.apply(  # type: ignore[no-untyped-call]  # torch gives it no types
                getattr(self.osft_inner, name),
                getattr(self, f"osft_coordinates_{name}"),
                getattr(self, f"osft_free_{name}"),
                left,
            )
            for name, left in self._left.items()
        }
        return functional_call(self.osft_inner, weights, inputs, named)


def name_in_plain_model(name: str) -> str | None:
    """The name of an OSFT model's tensor in the plain model. None if the plain model does not have it."""
    parts = [part for part in name.split(".") if part != "osft_inner"]
    return None if parts[-1].startswith(PREFIX) else ".".join(parts)
