"""Frozen linear layers in fp8: 8-bit weights, and both of their products in fp8 (`algo.precision=fp8`).

A weight W (out x in) is held as w_n Q_nk, with Q in float8_e4m3fn and one float32 scale w_n for each output row. Tokens are
brought to fp8 anew in each pass, each by its own largest magnitude, since activations differ far more from token to token than
weights from row to row. What learns (the adapters, biases) never gets here and keeps its own precision.

    y_tn = x_t w_n sum_k X_tk Q_nk          X = fp8(x / x_t), x_t = max_k |x_tk| / 439
    dx_tk = d_t sum_n D_tn Q_nk             D = fp8(g w / d_t), d_t = max_n |g_tn w_n| / 439

The sum of the input's gradient runs over the output rows, whose scales can't be taken out of it: the incoming gradient g is
multiplied by them first. So the gradient is that of the very weights of the forward pass, without a second set of scales.

Memory: Hopper's fp8 products want both operands with the summed dimension last, so that each product needs its own layout of Q.
Both are kept, 2 bytes for each weight as in bfloat16: turning 7 GB around in every backward pass of an 8B model would cost more
time than it saves memory. What is gained is speed.
"""

from typing import Any

import torch
from torch import nn

from hub import ConfigError
from hub.train.kernels.float8 import input_gradient, product, replace_layers, to_fp8


class _Frozen(torch.autograd.Function):
    """y = x W^T and its gradient with respect to x. Of x nothing is kept."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, codes: torch.Tensor, turned: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(turned, scales)
        ctx.dtype = x.dtype
        rows, row_scales = to_fp8(x)
        return product(rows, codes, row_scales, scales)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        turned, scales = ctx.saved_tensors
        return input_gradient(gradient, turned, scales).to(ctx.dtype), None, None, None


class Float8Linear(nn.Module):
    """A frozen linear layer in fp8. Takes any floating type, gives bfloat16."""

    codes: nn.Parameter
    """(out, in) float8_e4m3fn."""

    turned: torch.Tensor
    """(in, out): the same, for the gradient."""

    scales: torch.Tensor
    """(out,) float32: row n of the weight is `scales[n] * codes[n]`."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        codes, scales = to_fp8(layer.weight.detach())
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.register_buffer("turned", codes.t().contiguous())
        self.register_buffer("scales", scales[:, 0].contiguous())
        self.bias = layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        y: torch.Tensor = _Frozen.apply(x.reshape(-1, self.in_features), self.codes, self.turned, self.scales)
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        return y.unflatten(0, x.shape[:-1])

    @property
    def weight(self) -> torch.Tensor:
        """Refused, so that nothing takes the codes for the weight: merging an adapter into it, for one.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "a layer of algo.precision=fp8 has no full weight to read or to merge an adapter into. "
            "Load the saved adapter onto the base model and merge it there"
        )

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def hold_in_fp8(model: Any) -> tuple[list[str], list[str]]:
    """Replace the frozen linear layers of a model that has its adapters already, one after the other.

    The output layer, embeddings and the adapters stay as they are, and so do layers that fp8 products can't take.

    Args:
        model: PEFT's.

    Returns:
        Names of the layers that are in fp8 now, and of the frozen linear layers that are not.

    Raises:
        ConfigError: none could be replaced.
    """
    head = model.get_base_model().get_output_embeddings()
    return replace_layers(model, head, lambda layer: not layer.weight.requires_grad, Float8Linear)
