"""Linear layers that learn, with two of their three products in fp8 (`algo.precision=fp8`).

The weight W (out x in) is kept as without fp8, in float32 or bfloat16. It changes from step to step: each pass brings it to fp8
anew, with a scale w_n for each output row. With tokens x and the gradient g of y, each token with a scale of its own,

    y_tn = x_t w_n sum_k X_tk Q_nk          Q = fp8(bf16(W) / w_n), X = fp8(x / x_t)
    dx_tk = d_t sum_n D_tn Q_nk             D = fp8(g w / d_t)
    dW_nk = sum_t g_tn x_tk                 in bfloat16

The gradient of W stays in bfloat16: its sum runs over the tokens, whose scales can't be taken out of it, and it is what adds up
over the whole run. torchao's recipe `rowwise_with_gw_hp` divides the work alike, but rounds W anew for the second product, with
one scale for all of it; here that product has the very numbers of the first one.

Q comes from W in bfloat16, as it will be saved and as autocast takes it without fp8: what is below that precision would else be
learnt in fp8 and be gone from the saved model.

Between the passes W itself is kept and not Q: nothing to hold where layers are shared out (FSDP2 gathers W again), and no copy
that is stale once the optimizer has stepped. Rounding W reads it once, for a product of it with thousands of tokens.
"""

from typing import Any

import torch
from torch import nn

from hub.train.adamw_bf16 import rounded
from hub.train.kernels.float8 import codes_of, input_gradient, product, replace_layers, to_fp8


def as_saved(weight: torch.Tensor) -> torch.Tensor:
    """A weight in bfloat16, to the nearest, even on a tie.

    By its bits: a compiler takes the way from float32 to bfloat16 and back for nothing to do.

    Args:
        weight: float32 or bfloat16, of any shape.
    """
    if weight.dtype != torch.float32:
        return weight
    return rounded(weight, 0x7FFF + ((weight.view(torch.int32) >> 16) & 1))


class _Learning(torch.autograd.Function):
    """y = x W^T with fp8 products, and both gradients."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        codes, scales = to_fp8(as_saved(weight))
        ctx.save_for_backward(x, weight, scales)
        rows, row_scales = to_fp8(x)
        return product(rows, codes, row_scales, scales[:, 0])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, weight, scales = ctx.saved_tensors
        turned = codes_of(as_saved(weight), scales).t().contiguous()
        return input_gradient(gradient, turned, scales[:, 0]), (gradient.t() @ x).to(weight.dtype)


class Float8LearningLinear(nn.Linear):
    """A linear layer that learns with fp8 products. Takes any floating type, gives bfloat16.

    In evaluation it is a plain one: what is measured is the model that will be saved.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        if not self.training:
            return super().forward(x)
        # The gradient of the weight takes the input as autocast would have it.
        y: torch.Tensor = _Learning.apply(x.reshape(-1, self.in_features).to(torch.bfloat16), self.weight)
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        return y.unflatten(0, x.shape[:-1])


def learn_in_fp8(model: Any) -> tuple[list[str], list[str]]:
    """Let the linear layers of a model train with fp8 products. Their weights, and the names of these, stay.

    The output layer and embeddings stay as they are, and so do layers that fp8 products can't take.

    Args:
        model: transformers'.

    Returns:
        Names of the layers that do, and of the linear layers that don't.

    Raises:
        ConfigError: no layer can.
    """

    def make(layer: nn.Linear) -> nn.Linear:
        layer.__class__ = Float8LearningLinear  # the same object: its weights, hooks and mode stay
        return layer

    return replace_layers(model, model.get_output_embeddings(), lambda layer: True, make)
