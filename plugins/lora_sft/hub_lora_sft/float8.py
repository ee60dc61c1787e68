"""Frozen linear layers in fp8: 8-bit weights, and both of their products in fp8 (`algo.precision=fp8`).

A weight W (out x in) is held as w_n Q_nk, with Q in float8_e4m3fn and one float32 scale w_n for each output row. Tokens are
brought to fp8 anew in each pass, each by its own largest magnitude, since activations differ far more from token to token than
weights from row to row. What learns (the adapters, biases) never gets here and keeps its own precision.

    y_tn = x_t w_n sum_k X_tk Q_nk          X = fp8(x / x_t), x_t = max_k |x_tk| / 448
    dx_tk = d_t sum_n D_tn Q_nk             D = fp8(g w / d_t), d_t = max_n |g_tn w_n| / 448

The sum of the input's gradient runs over the output rows, whose scales can't be taken out of it: the incoming gradient g is
multiplied by them first. So the gradient is that of the very weights of the forward pass, without a second set of scales.

Memory: Hopper's fp8 products want both operands with the summed dimension last, so that each product needs its own layout of Q.
Both are kept, 2 bytes for each weight as in bfloat16: turning 7 GB around in every backward pass of an 8B model would cost more
time than it saves memory. What is gained is speed.
"""

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hub import ConfigError

LARGEST = 448.0
"""Of float8_e4m3fn, which has 3 bits behind the point and no infinity (arXiv 2209.05433)."""

SMALLEST_SCALE = torch.finfo(torch.float32).tiny
"""For a row of zeros. Gradients of single tokens are tiny, so that no larger number would do."""

MULTIPLE = 16
"""What both sizes of a weight have to be multiples of (torch._scaled_mm)."""

HINT = "Type algo.precision=auto"


def to_fp8(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows in fp8, each divided by a scale of its own. Plain torch, so that a compiler makes it one kernel.

    An element comes back within 2^-4 of itself; one below 2^-6 scales, within 2^-10 scales (rounding to nearest).

    Args:
        rows: (n, k).

    Returns:
        (n, k) float8_e4m3fn, and (n, 1) float32: their product is the input. A row with NaN or infinity is NaN.
    """
    wide = rows.float()
    scales = (wide.abs().amax(1, keepdim=True) / LARGEST).clamp(min=SMALLEST_SCALE)
    return (wide / scales).to(torch.float8_e4m3fn).contiguous(), scales


def product(a: torch.Tensor, b: torch.Tensor, a_scales: torch.Tensor, b_scales: torch.Tensor) -> torch.Tensor:
    """The product a b^T of two fp8 matrices whose rows have scales.

    Args:
        a: (t, k) float8_e4m3fn.
        b: (n, k) float8_e4m3fn.
        a_scales: (t, 1) float32.
        b_scales: (n,) float32.

    Returns:
        (t, n) bfloat16. Without a GPU the sums are exact before they are rounded: a reference for tests.
    """
    if a.is_cuda:
        scales = {"scale_a": a_scales, "scale_b": b_scales[None]}
        return torch._scaled_mm(a, b.t(), **scales, out_dtype=torch.bfloat16, use_fast_accum=True)
    return (a.double() @ b.double().t() * a_scales * b_scales).bfloat16()


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
        rows, row_scales = to_fp8(gradient.float() * scales)
        found = product(rows, turned, row_scales, scales.new_ones(turned.shape[0]))
        return found.to(ctx.dtype), None, None, None


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


def hold_in_fp8(model: Any) -> tuple[int, int]:
    """Replace the frozen linear layers of a model that has its adapters already, one after the other.

    The output layer, embeddings and the adapters stay as they are, and so do layers that fp8 products can't take.

    Args:
        model: PEFT's.

    Returns:
        How many layers are in fp8 now, and how many frozen linear layers are not.

    Raises:
        ConfigError: none could be replaced.
    """
    head = model.get_base_model().get_output_embeddings()

    def is_frozen(layer: nn.Module) -> bool:
        linear = isinstance(layer, nn.Linear | Conv1D) and layer is not head
        return linear and not layer.weight.requires_grad

    # Names only: a list of the layers would keep their weights until the last one is replaced.
    names = [name for name, layer in model.named_modules() if is_frozen(layer)]
    num_held = 0
    for name in names:
        parent, _, last = name.rpartition(".")
        layer = model.get_submodule(name)
        if type(layer) is nn.Linear and not any(size % MULTIPLE for size in layer.weight.shape):
            setattr(model.get_submodule(parent), last, Float8Linear(layer))
            num_held += 1
    if not num_held:
        raise ConfigError(
            f"algo.precision=fp8: none of the model's {len(names)} linear layers can be held in fp8, which takes plain linear "
            f"layers whose sizes are multiples of {MULTIPLE}. {HINT}"
        )
    return num_held, len(names) - num_held


def check_gpu() -> None:
    """See that the GPUs here have fp8 products with a scale for each row.

    Raises:
        ConfigError: they don't, or there are none.
    """
    needs = "algo.precision=fp8 needs NVIDIA GPUs of Hopper's generation or later (H100, H200, B200)"
    if not torch.cuda.is_available() or torch.version.hip:
        raise ConfigError(f"{needs}, and there is none here. {HINT}")
    for number in range(torch.cuda.device_count()):
        if torch.cuda.get_device_capability(number)[0] < 9:
            raise ConfigError(f"{needs}; this one is older: {torch.cuda.get_device_name(number)}. {HINT}")
