"""4-bit weights dequantized while a model trains: by the hub's own kernel, and no more often than needed.

bitsandbytes' layers dequantize a weight in each product, by three kernels, and a compiler can't see into any of it.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from hub.models.four_bit import is_4bit
from hub.models.four_bit_tensor import NUM_PARTS, NUM_TENSORS, Parts
from hub.models.patches import Edits, ModelPatches, Patch

CHANGED = "there are none, or their forward pass is patched already (sharded weights, hooks)"

_KERNEL_FORWARDS: "weakref.WeakSet[Callable[..., torch.Tensor]]" = weakref.WeakSet()
"""Forward passes made by `UnpackByKernel`."""


class UnpackByKernel(Patch):
    """4-bit layers use the hub's operators in training. In evaluation they stay bitsandbytes' own.

    Args:
        layers: of bitsandbytes, whose weights are quantized.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        self._layers = layers

    def apply(self, edits: Edits) -> None:
        for layer in self._layers:
            edits.assign(layer, "hub_packed", tuple(packed_parts(layer.weight, layer.weight.quant_state)))
            forward = _by_kernel(layer, layer.forward)
            _KERNEL_FORWARDS.add(forward)
            edits.assign(layer, "forward", forward)

    def report(self, plan: dict[str, object]) -> None:
        plan["unpacking"] = "the hub's kernel"


TILE_DIMS = 4
"""Dimensions of a tile of tokens, (R, 1, tokens, features). All other inputs of a layer have fewer."""


class UnpackOnce(Patch):
    """For tiles of tokens, dequantization becomes an operation of its own, which a compiler does once for all of them.

    bitsandbytes' own product does it again for each call. Other inputs (fewer than `TILE_DIMS` dimensions) take that one: a
    weight that is dequantized once is there from the forward to the backward pass. A layer whose forward pass anything but
    `UnpackByKernel` has changed stays as it is.

    Args:
        layers: of bitsandbytes.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        self._layers = layers

    def apply(self, edits: Edits) -> None:
        for layer in self._layers:
            before = vars(layer).get("forward")
            by_kernel = before in _KERNEL_FORWARDS if before is not None else False
            if getattr(layer.weight, "quant_state", None) is not None and (before is None or by_kernel):
                edits.assign(layer, "forward", _once(layer, layer.forward, by_kernel))


def _by_kernel(layer: Any, plain: Callable[..., torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        if not layer.training:
            return plain(x)
        wanted = layer.compute_dtype or x.dtype
        out: torch.Tensor = _Product.apply(  # type: ignore[no-untyped-call]  # torch gives it no types
            x.to(wanted), *layer.hub_packed
        )
        return (out if layer.bias is None else out + layer.bias.to(wanted)).to(x.dtype)

    return forward


def _once(layer: Any, plain: Callable[..., torch.Tensor], by_kernel: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        if not layer.training or x.ndim != TILE_DIMS:
            return plain(x)
        wanted = layer.compute_dtype or x.dtype
        bias = None if layer.bias is None else layer.bias.to(wanted)
        weight = unpack(*layer.hub_packed) if by_kernel else _by_bitsandbytes(layer)
        return F.linear(x.to(wanted), weight.to(wanted), bias).to(x.dtype)

    return forward


def _by_bitsandbytes(layer: Any) -> torch.Tensor:
    from bitsandbytes.functional import dequantize_4bit

    weight: torch.Tensor = dequantize_4bit(layer.weight, layer.weight.quant_state)
    return weight


def use_kernel(patches: ModelPatches, model: torch.nn.Module) -> str:
    """Let a model's 4-bit layers use the hub's own kernel in training, if it gives exactly what bitsandbytes gives.

    The first layer is the trial. From then on the layers must stay on their device. The decision goes to plan.json.

    Returns:
        Why the layers do not use it; empty if they do. A layer whose forward pass is patched already is left as it is.
    """
    layers = [module for module in model.modules() if is_4bit(module) and "forward" not in vars(module)]
    problem = _problem(layers)
    patches.decide("unpacking", "bitsandbytes", problem or "the same numbers in one kernel")
    if not problem:
        patches.apply(UnpackByKernel(layers))
    return problem


def _problem(layers: Sequence[Any]) -> str:
    if not layers:
        return CHANGED
    if any(not _fits(layer) for layer in layers):
        return "their weights are packed in a format that it does not support"
    try:
        first = layers[0]
        if not torch.equal(unpack_by_kernel(*packed_parts(first.weight, first.weight.quant_state)), _by_bitsandbytes(first)):
            return "its numbers differ from bitsandbytes'"
    except Exception as error:  # whatever its compiler raises, bitsandbytes does the same
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return ""


def _fits(layer: Any) -> bool:
    weight, state = layer.weight, getattr(layer.weight, "quant_state", None)
    if not weight.is_cuda or torch.version.hip or state is None or len(state.shape) != 2 or state.blocksize % 8:
        return False
    scales = torch.uint8 if state.nested else torch.float32
    return bool(state.absmax.dtype == scales and state.code.dtype == torch.float32 and state.shape.numel() % 8 == 0)


def packed_tensors(module: torch.nn.Module) -> tuple[torch.Tensor, ...]:
    """Return the tensors of a module's packed weight that compiled layers hold; none if the kernel is not in use."""
    return tuple(part for part in vars(module).get("hub_packed", ()) if isinstance(part, torch.Tensor))


def packed_parts(packed: torch.Tensor, state: Any) -> Parts:
    """Return the operators' arguments for a packed weight: no copy, and no parameter that intercepts each operation.

    Args:
        packed: of a layer of bitsandbytes.
        state: its `QuantState`.
    """
    words = packed.detach().as_subclass(torch.Tensor).reshape(-1).view(torch.int32)
    nested = state.state2
    codes, groups, offset, per_group = (
        (nested.code, nested.absmax, state.offset, nested.blocksize) if state.nested else (None, None, None, 1)
    )
    return Parts(
        words, state.code, state.absmax, codes, groups, offset, per_group, state.blocksize, list(state.shape), state.dtype
    )


def unpack_by_kernel(
    words: torch.Tensor, table: torch.Tensor, scales: torch.Tensor, codes: torch.Tensor | None, groups: torch.Tensor | None,
    offset: torch.Tensor | None, per_group: int, per_scale: int, shape: Sequence[int], dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    """Dequantize a packed weight on a GPU. The arguments are `Parts`, with words of 32 bits."""
    from hub.train.kernels import four_bit_kernel

    nested = None if codes is None or groups is None or offset is None else (codes, groups, offset)
    return four_bit_kernel.unpack(words, table, scales, nested, per_scale, per_group, shape, dtype)


def _product(x: torch.Tensor, *parts: Any) -> torch.Tensor:
    """Compute x W^T in one operator, which frees the dequantized weight. From two operators a compiler would save it."""
    return F.linear(x, unpack_by_kernel(*parts).to(x.dtype))


# Not torch.library.custom_op: its overhead for each call is more than a layer's products hide.
PARTS = (
    "Tensor words, Tensor table, Tensor scales, Tensor? codes, Tensor? groups, Tensor? offset, int per_group, int per_scale, "
    "int[] shape, ScalarType dtype"
)
"""The arguments of operators for a packed weight (`packed_parts`)."""

_LIBRARY = torch.library.Library("hub", "FRAGMENT")
_LIBRARY.define(f"unpack_4bit({PARTS}) -> Tensor")
_LIBRARY.define(f"product_4bit(Tensor x, {PARTS}) -> Tensor")
_LIBRARY.impl("unpack_4bit", unpack_by_kernel, "CompositeExplicitAutograd")
_LIBRARY.impl("product_4bit", _product, "CompositeExplicitAutograd")
unpack, product = torch.ops.hub.unpack_4bit.default, torch.ops.hub.product_4bit.default
"""Operators in compiled graphs: dequantize a packed weight, and multiply x (..., in) by it, (..., out)."""


@torch.library.register_fake("hub::unpack_4bit")
def _(words, table, scales, codes, groups, offset, per_group, per_scale, shape, dtype):  # type: ignore[no-untyped-def]
    return words.new_empty(shape, dtype=dtype)


@torch.library.register_fake("hub::product_4bit")
def _(x, words, table, scales, codes, groups, offset, per_group, per_scale, shape, dtype):  # type: ignore[no-untyped-def]
    return x.new_empty((*x.shape[:-1], shape[0]))


class _Product(torch.autograd.Function):  # type: ignore[misc]
    """Compute x W^T. The weight is dequantized, freed, and dequantized again for the gradient of x."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, *parts: Any) -> torch.Tensor:
        ctx.save_for_backward(*parts[:NUM_TENSORS])
        ctx.rest = parts[NUM_TENSORS:]
        out: torch.Tensor = product(x, *parts)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        weight = unpack(*ctx.saved_tensors, *ctx.rest)
        return gradient @ weight.to(gradient.dtype), *[None] * NUM_PARTS
