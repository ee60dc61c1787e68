"""Trained linear layers with two of their three matrix products in fp8 (`algo.precision=fp8`).

The weight W (out x in) is stored as without fp8, in float32 or bfloat16. It changes in each step, so each pass converts it to
fp8, with a scale w_n for each output row. With tokens x and the gradient g of y, each token with its own scale,

    y_tn = x_t w_n sum_k X_tk Q_nk          Q = fp8(bf16(W) / w_n), X = fp8(x / x_t)
    dx_tk = d_t sum_n D_tn Q_nk             D = fp8(g w / d_t)
    dW_nk = sum_t g_tn x_tk                 in bfloat16

The gradient of W stays in bfloat16: its sum runs over the tokens, whose scales can't be factored out, and it accumulates over
the full run. torchao's recipe `rowwise_with_gw_hp` uses the same products in fp8, but quantizes W again for the second one,
with one scale for the full matrix. Here both products use the same Q.

Q is computed from W in bfloat16, as it will be saved and as autocast uses it without fp8. Otherwise the model would learn
details below that precision in fp8, which the saved model loses.

W is stored between the passes, not Q. So sharded layers need no extra copy (FSDP2 all-gathers W again), and no copy is stale
after an optimizer step. Quantizing W reads it once, for a product with thousands of tokens.
"""

from typing import Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from hub.train.adamw_bf16 import rounded
from hub.train.kernels.float8 import codes_of, input_gradient, product, replace_layers, to_fp8


def as_saved(weight: torch.Tensor) -> torch.Tensor:
    """A weight rounded to bfloat16, to nearest even.

    Done on its bits: the compiler would remove a cast from float32 to bfloat16 and back.

    Args:
        weight: float32 or bfloat16, of any shape.
    """
    if weight.dtype != torch.float32:
        return weight
    return rounded(weight, 0x7FFF + ((weight.view(torch.int32) >> 16) & 1))


class _Context(Protocol):
    """What the two passes share."""

    saved_tensors: tuple[torch.Tensor, ...]

    def save_for_backward(self, *tensors: torch.Tensor) -> None: ...


class _Learning(torch.autograd.Function):
    """The product y = x W^T and the gradient of x in fp8; the gradient of W in bfloat16."""

    @staticmethod
    def forward(ctx: _Context, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        codes, scales = to_fp8(as_saved(weight))
        ctx.save_for_backward(x, weight, scales)
        rows, row_scales = to_fp8(x)
        return product(rows, codes, row_scales, scales[:, 0])

    @staticmethod
    def backward(ctx: _Context, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, weight, scales = ctx.saved_tensors
        weight_t = codes_of(as_saved(weight), scales).t().contiguous()
        return input_gradient(gradient, weight_t, scales[:, 0]), (gradient.t() @ x).to(weight.dtype)


class Float8LearningLinear(nn.Linear):
    """A linear layer that trains with fp8 products. Input of any floating dtype, output in bfloat16.

    In evaluation it is a plain linear layer, so that the saved model is evaluated.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        if not self.training:
            return super().forward(x)
        # The gradient of the weight uses the input in bfloat16, as with autocast.
        rows = x.reshape(-1, self.in_features).to(torch.bfloat16)
        y: torch.Tensor = _Learning.apply(rows, self.weight)  # type: ignore[no-untyped-call]  # torch gives it no types
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        unflattened: torch.Tensor = y.unflatten(0, x.shape[:-1])
        return unflattened


def learn_in_fp8(model: PreTrainedModel) -> tuple[list[str], list[str]]:
    """Train a model's linear layers with fp8 products. Their weights and parameter names do not change.

    The output layer, embeddings, frozen layers, and layers whose shape fp8 products don't support are left unchanged.

    Args:
        model: a transformers model.

    Returns:
        Names of the layers in fp8, and of the linear layers not in fp8.

    Raises:
        ConfigError: no layer can run in fp8.
    """

    def make(layer: nn.Linear) -> nn.Linear:
        layer.__class__ = Float8LearningLinear  # the same object keeps its weights, hooks and mode
        return layer

    def trains(layer: nn.Module) -> bool:
        return all(parameter.requires_grad for parameter in layer.parameters())

    return replace_layers(model, model.get_output_embeddings(), trains, make)
