"""Packed 4-bit weights brought to 16 bits while a model trains: by the hub's own kernel, and no more often than needed.

bitsandbytes' layers do it in each product, by three kernels, and let a compiler see none of it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from hub.models.four_bit import is_4bit


def unpack_once(layer: Any) -> Callable[[], None] | None:
    """Let a layer bring its weight to 16 bits in an operation of its own, which a compiler does once for several calls.

    bitsandbytes' own product does it anew for each.

    Returns:
        What undoes it; None where something else than `use_kernel` has changed the layer's forward pass, which stays as it is.
    """
    before = vars(layer).get("forward")
    own = before is not None and before is getattr(layer, "hub_forward", None)
    if getattr(layer.weight, "quant_state", None) is None or (before is not None and not own):
        return None
    plain = layer.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        if not layer.training:
            return plain(x)
        wanted = layer.compute_dtype or x.dtype
        bias = None if layer.bias is None else layer.bias.to(wanted)
        weight = unpack(*layer.hub_packed) if own else _by_bitsandbytes(layer)
        return F.linear(x.to(wanted), weight.to(wanted), bias).to(x.dtype)

    def undo() -> None:
        if before is None:
            del layer.forward
        else:
            layer.forward = before

    layer.forward = forward
    return undo


def _by_bitsandbytes(layer: Any) -> torch.Tensor:
    from bitsandbytes.functional import dequantize_4bit

    weight: torch.Tensor = dequantize_4bit(layer.weight, layer.weight.quant_state)
    return weight


def use_kernel(model: torch.nn.Module) -> str:
    """Let a model's 4-bit layers bring their weights to 16 bits by the hub's own kernel while they train.

    It is tried on the first of them: to the last bit what bitsandbytes gives. From then on they stay where they are.

    Returns:
        Why they don't; empty when they do. A layer whose forward pass something else has changed is left as it is.
    """
    layers = [module for module in model.modules() if is_4bit(module) and "forward" not in vars(module)]
    if not layers:
        return "there are none, or something else has changed them: weights that are shared out, hooks"
    if any(not _fits(layer) for layer in layers):
        return "their weights are packed in a way that it does not know"
    try:
        first = layers[0]
        if not torch.equal(_unpack(*packed_parts(first.weight, first.weight.quant_state)), _by_bitsandbytes(first)):
            return "it gives other numbers than bitsandbytes"
    except Exception as error:  # whatever its compiler raises, bitsandbytes does the same
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    for layer in layers:
        train_by_kernel(layer)
    return ""


def _fits(layer: Any) -> bool:
    weight, state = layer.weight, getattr(layer.weight, "quant_state", None)
    if not weight.is_cuda or torch.version.hip or state is None or len(state.shape) != 2 or state.blocksize % 8:
        return False
    scales = torch.uint8 if state.nested else torch.float32
    return bool(state.absmax.dtype == scales and state.code.dtype == torch.float32 and state.shape.numel() % 8 == 0)


def train_by_kernel(layer: Any) -> None:
    """Let a layer use the hub's operators in training. In evaluation it does what it did."""
    plain = layer.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        if not layer.training:
            return plain(x)
        wanted = layer.compute_dtype or x.dtype
        out: torch.Tensor = _Product.apply(x.to(wanted), *layer.hub_packed)
        return (out if layer.bias is None else out + layer.bias.to(wanted)).to(x.dtype)

    layer.forward = layer.hub_forward = forward
    layer.hub_packed = packed_parts(layer.weight, layer.weight.quant_state)


def packed_parts(packed: torch.Tensor, state: Any) -> tuple[Any, ...]:
    """What the operators take of a packed weight. No copy, and no parameter of a kind that looks at each operation."""
    words = packed.detach().as_subclass(torch.Tensor).reshape(-1).view(torch.int32)
    nested = state.state2
    more = (nested.code, nested.absmax, state.offset, nested.blocksize) if state.nested else (None, None, None, 1)
    return words, state.code, state.absmax, *more, state.blocksize, list(state.shape), state.dtype


def _unpack(
    words: torch.Tensor, table: torch.Tensor, scales: torch.Tensor, codes: torch.Tensor | None, groups: torch.Tensor | None,
    offset: torch.Tensor | None, per_group: int, per_scale: int, shape: Sequence[int], dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    from hub.train.kernels import four_bit_kernel

    nested = None if codes is None or groups is None or offset is None else (codes, groups, offset)
    return four_bit_kernel.unpack(words, table, scales, nested, per_scale, per_group, shape, dtype)


def _product(x: torch.Tensor, *parts: Any) -> torch.Tensor:
    """The product x W^T. One operator, of whose unpacked weight nothing is left: a compiler would keep that of two."""
    return F.linear(x, _unpack(*parts).to(x.dtype))


# Not torch.library.custom_op: what it does around a call takes longer than a layer's products leave time for.
_PARTS = (
    "Tensor words, Tensor table, Tensor scales, Tensor? codes, Tensor? groups, Tensor? offset, int per_group, int per_scale, "
    "int[] shape, ScalarType dtype"
)
_LIBRARY = torch.library.Library("hub", "FRAGMENT")
_LIBRARY.define(f"unpack_4bit({_PARTS}) -> Tensor")
_LIBRARY.define(f"product_4bit(Tensor x, {_PARTS}) -> Tensor")
_LIBRARY.impl("unpack_4bit", _unpack, "CompositeExplicitAutograd")
_LIBRARY.impl("product_4bit", _product, "CompositeExplicitAutograd")
unpack, product = torch.ops.hub.unpack_4bit.default, torch.ops.hub.product_4bit.default
"""Operators that compiled layers hold: a packed weight's numbers, and x (..., in) times them, (..., out)."""


@torch.library.register_fake("hub::unpack_4bit")
def _(words, table, scales, codes, groups, offset, per_group, per_scale, shape, dtype):  # type: ignore[no-untyped-def]
    return words.new_empty(shape, dtype=dtype)


@torch.library.register_fake("hub::product_4bit")
def _(x, words, table, scales, codes, groups, offset, per_group, per_scale, shape, dtype):  # type: ignore[no-untyped-def]
    return x.new_empty((*x.shape[:-1], shape[0]))


class _Product(torch.autograd.Function):  # type: ignore[misc]
    """The product x W^T: the weight is unpacked, gone, and unpacked again for the gradient of x."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, *parts: Any) -> torch.Tensor:
        ctx.save_for_backward(*parts[:6])
        ctx.rest = parts[6:]
        out: torch.Tensor = product(x, *parts)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        weight = unpack(*ctx.saved_tensors, *ctx.rest)
        return gradient @ weight.to(gradient.dtype), *[None] * 10
