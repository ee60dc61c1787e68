"""Frozen linear layers in fp8: 8-bit weights, and both of their matrix products in fp8 (`algo.precision=fp8`).

A weight W (out x in) is stored as w_n Q_nk, with Q in float8_e4m3fn and one float32 scale w_n for each output row. Tokens are
quantized in each pass, each by its own largest magnitude, since activations differ far more between tokens than weights between
rows. Trained parameters (adapters, biases) are not affected and keep their own precision.

    y_tn = x_t w_n sum_k X_tk Q_nk          X = fp8(x / x_t), x_t = max_k |x_tk| / 439
    dx_tk = d_t sum_n D_tn Q_nk             D = fp8(g w / d_t), d_t = max_n |g_tn w_n| / 439

The sum of the input's gradient runs over the output rows, whose scales can't be factored out: the incoming gradient g is
multiplied by them first. So both passes use exactly the same weights, without a second set of scales.

Memory: Hopper's fp8 products need both operands with the summed dimension last, so each product needs its own layout of Q. Both
are stored, 2 bytes for each weight as in bfloat16: transposing 7 GB in every backward pass of an 8B model would cost too much
time. So fp8 gains speed, not memory.
"""

from collections.abc import Collection
from typing import Protocol

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from hub import ConfigError
from hub.train.kernels.float8 import input_gradient, product, replace_layers, to_fp8


class _Context(Protocol):
    """What the two passes share."""

    dtype: torch.dtype
    saved_tensors: tuple[torch.Tensor, ...]

    def save_for_backward(self, *tensors: torch.Tensor) -> None: ...


class _Frozen(torch.autograd.Function):
    """The product y = x W^T and its gradient with respect to x. Nothing of x is saved for the backward pass."""

    @staticmethod
    def forward(
        ctx: _Context, x: torch.Tensor, codes: torch.Tensor, weight_t: torch.Tensor, scales: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(weight_t, scales)
        ctx.dtype = x.dtype
        rows, row_scales = to_fp8(x)
        return product(rows, codes, row_scales, scales)

    @staticmethod
    def backward(ctx: _Context, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        weight_t, scales = ctx.saved_tensors
        return input_gradient(gradient, weight_t, scales).to(ctx.dtype), None, None, None


class Float8Linear(nn.Module):
    """A frozen linear layer in fp8. Input of any floating dtype, output in bfloat16."""

    codes: nn.Parameter
    """(out, in) float8_e4m3fn."""

    weight_t: torch.Tensor
    """(in, out): the transpose of `codes`, for the gradient."""

    scales: torch.Tensor
    """(out,) float32: row n of the weight is `scales[n] * codes[n]`."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        codes, scales = to_fp8(layer.weight.detach())
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.register_buffer("weight_t", codes.t().contiguous())
        self.register_buffer("scales", scales[:, 0].contiguous())
        self.bias = layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        rows = x.reshape(-1, self.in_features)
        y: torch.Tensor = _Frozen.apply(rows, self.codes, self.weight_t, self.scales)  # type: ignore[no-untyped-call]  # torch gives it no types
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        unflattened: torch.Tensor = y.unflatten(0, x.shape[:-1])
        return unflattened

    @property
    def weight(self) -> torch.Tensor:
        """Not available, so that nothing mistakes the codes for the weight, for example to merge an adapter into it.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "a layer of algo.precision=fp8 has no full weight to read or to merge an adapter into. "
            "Load the saved adapter onto the base model and merge it there"
        )

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def hold_in_fp8(model: PeftModel, left_out: Collection[str] = ()) -> tuple[list[str], list[str]]:
    """Replace the frozen linear layers of a model that already has its adapters, one after the other.

    The output layer, embeddings, adapters, and layers whose shape fp8 products don't support are left unchanged.

    Args:
        model: a PEFT model.
        left_out: names of layers of the plain model that no other layer can take the place of.

    Returns:
        Names of the layers in fp8, and of the frozen linear layers not in fp8.

    Raises:
        ConfigError: none could be replaced.
    """
    base = model.get_base_model()
    assert isinstance(base, PreTrainedModel)
    head = base.get_output_embeddings()
    odd = {id(base.get_submodule(name)) for name in left_out}

    def is_meant(layer: nn.Module) -> bool:
        return id(layer) not in odd and not layer.weight.requires_grad

    return replace_layers(model, head, is_meant, Float8Linear)
