"""Products of rows with the matrices of experts in 4 bits (`FourBitTensor`), which are in full only while one is computed.

The tensor of one layer is dequantized for its product, freed, and dequantized again for the gradient of the rows: by the hub's
kernel on a GPU, by torch's own operations elsewhere. Both give the same numbers.
"""

from collections.abc import Sequence
from typing import Any

import torch

from hub.models.four_bit_tensor import NUM_PARTS, NUM_TENSORS, FourBitTensor, Parts, unpacked
from hub.train.kernels.grouped import plain_product
from hub.train.kernels.unpack import PARTS, unpack_by_kernel


def parts_of(tensor: FourBitTensor, by_kernel: bool = False) -> Parts:
    """What a tensor consists of, as `grouped_product_in_4_bits` takes it.

    Args:
        tensor: of experts.
        by_kernel: whether the hub's kernel dequantizes it. It takes words of 32 bits.
    """
    parts = tensor.parts
    return parts._replace(words=parts.words.view(torch.int32)) if by_kernel else parts


def held_parts(experts: torch.nn.Module, names: Sequence[str], name: str) -> tuple[Parts, bool] | None:
    """The parts of a tensor of experts in 4 bits, and whether they are those of its matrices transposed. None: it is in full.

    Args:
        experts: the module.
        names: of its tensors, in the order in which `PackedExperts` holds their parts as plain tensors, if it does.
        name: of the tensor.
    """
    held = getattr(experts, "hub_packed", None)
    if held is not None:
        first = names.index(name) * (NUM_PARTS + 1)
        return Parts(*held[first : first + NUM_PARTS]), held[first + NUM_PARTS]
    tensor = getattr(experts, name)
    return (tensor.parts, tensor.is_transposed) if isinstance(tensor, FourBitTensor) else None


def grouped_product_in_4_bits(rows: torch.Tensor, parts: Parts, ends: torch.Tensor, is_transposed: bool) -> torch.Tensor:
    """Multiply the rows of each group with its matrix: (rows, in) to (rows, out).

    Args:
        rows: sorted by group, in the dtype of the matrices.
        parts: of the packed matrices.
        ends: (groups,) int32, of `group_ends`.
        is_transposed: whether what is packed is (groups, out, in), and not (groups, in, out).
    """
    result: torch.Tensor = _Product.apply(rows, ends, is_transposed, *parts)  # type: ignore[no-untyped-call]
    return result


class _Product(torch.autograd.Function):
    """The gradient of the rows is one product with the matrices, which are dequantized again for it."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, ends: torch.Tensor, is_transposed: bool, *parts: Any) -> torch.Tensor:
        ctx.save_for_backward(ends, *parts[:NUM_TENSORS])
        ctx.rest, ctx.is_transposed = parts[NUM_TENSORS:], is_transposed
        result: torch.Tensor = product_in_4_bits(rows, ends, is_transposed, *parts)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,), (ends, *parts) = gradients, ctx.saved_tensors
        of_rows = None
        if ctx.needs_input_grad[0]:
            of_rows = product_in_4_bits(gradient.contiguous(), ends, not ctx.is_transposed, *parts, *ctx.rest)
        return of_rows, None, None, *[None] * NUM_PARTS


def _product_in_4_bits(rows: torch.Tensor, ends: torch.Tensor, is_transposed: bool, *parts: Any) -> torch.Tensor:
    """One operator, which frees the matrices. From two of them a compiler would save these."""
    packed = Parts(*parts)
    matrices: torch.Tensor = unpack_by_kernel(*packed) if packed.words.dtype == torch.int32 else unpacked(packed)
    result: torch.Tensor = plain_product(rows, matrices.transpose(-2, -1) if is_transposed else matrices, ends)
    return result


_LIBRARY = torch.library.Library("hub", "FRAGMENT")
_LIBRARY.define(f"grouped_product_4bit(Tensor rows, Tensor ends, bool is_transposed, {PARTS}) -> Tensor")
_LIBRARY.impl("grouped_product_4bit", _product_in_4_bits, "CompositeExplicitAutograd")
product_in_4_bits = torch.ops.hub.grouped_product_4bit.default
"""Operator in compiled graphs."""


@torch.library.register_fake("hub::grouped_product_4bit")
def _(rows, ends, is_transposed, words, table, scales, codes, groups, offset, per_group, per_scale, shape, dtype):  # type: ignore[no-untyped-def]
    return rows.new_empty((rows.shape[0], shape[1 if is_transposed else 2]))
