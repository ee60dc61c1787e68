"""Products of rows with one matrix for each group of rows, such as the tokens of each expert of a mixture.

On a GPU in bfloat16 they are one call (`torch.nn.functional.grouped_mm`), and else a loop over the groups. Gradients are
computed for what needs one only: frozen experts have none, and then their inputs need not be saved.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

ALIGNED = 16
"""Bytes: the sizes of the rows that torch's kernel takes are multiples of it."""

_native = getattr(F, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)


def group_ends(groups: torch.Tensor, number: int) -> torch.Tensor:
    """Where each group ends in sorted numbers of groups: (number,) int32. An empty group ends where the one before it does.

    Args:
        groups: (rows,) sorted integers from 0 to `number` - 1.
        number: of groups.
    """
    return torch.searchsorted(
        groups, torch.arange(number, device=groups.device, dtype=groups.dtype), right=True, out_int32=True
    )


def grouped_product(rows: torch.Tensor, matrices: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Multiply the rows of each group with its matrix: (rows, in) and (groups, in, out) to (rows, out).

    Args:
        rows: sorted by group.
        matrices: of the same dtype.
        ends: (groups,) int32, of `group_ends`. The last one is the number of rows.
    """
    result: torch.Tensor = _Product.apply(rows, matrices, ends)  # type: ignore[no-untyped-call]  # torch gives it no types
    return result


def is_native(rows: torch.Tensor, sizes: Sequence[int]) -> bool:
    """Whether torch's kernel takes rows of this type, with these numbers of columns of the factors."""
    if _native is None or rows.device.type != "cuda" or rows.dtype != torch.bfloat16:
        return False
    return _is_capable(rows.device.index) and all(size * rows.element_size() % ALIGNED == 0 for size in sizes)


def _is_capable(device: int | None) -> bool:
    """Whether a GPU is of a generation that torch's kernel is made for."""
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, matrices: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows if ctx.needs_input_grad[1] else None, matrices if ctx.needs_input_grad[0] else None, ends)
        product: torch.Tensor = plain_product(rows, matrices, ends)
        return product

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        rows, matrices, ends = ctx.saved_tensors
        gradient = gradient.contiguous()
        of_rows = plain_product(gradient, matrices.transpose(-2, -1), ends) if ctx.needs_input_grad[0] else None
        of_matrices = _outer(rows, gradient, ends) if ctx.needs_input_grad[1] else None
        return of_rows, of_matrices, None


def _aligned(matrices: torch.Tensor) -> torch.Tensor:
    """The matrices with rows or columns in a piece, each at a multiple of 16 bytes, which the kernel needs."""
    *_, rows, columns = matrices.stride()
    (height, width), step = matrices.shape[-2:], ALIGNED // matrices.element_size()
    by_row = columns == 1 and rows >= width and rows % step == 0
    by_column = rows == 1 and columns >= height and columns % step == 0
    return matrices if by_row or by_column else matrices.contiguous()


# Both products are operators of their own: the compiler would lay out a factor anew between its copy and torch's kernel, which
# then refuses it.
@torch.library.custom_op("hub::grouped_product", mutates_args=())
def plain_product(rows: torch.Tensor, matrices: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """The same as `grouped_product`, without a gradient."""
    if is_native(rows, matrices.shape[1:]):
        assert _native is not None
        product: torch.Tensor = _native(_aligned(rows), _aligned(matrices), offs=ends)
        return product
    result = rows.new_zeros(len(rows), matrices.shape[-1])
    start = 0
    for group, end in enumerate(ends.tolist()):
        if end > start:
            torch.mm(rows[start:end], matrices[group], out=result[start:end])
        start = end
    return result


@plain_product.register_fake
def _(rows, matrices, ends):  # type: ignore[no-untyped-def]
    return rows.new_empty(rows.shape[0], matrices.shape[-1])


@torch.library.custom_op("hub::grouped_outer", mutates_args=())
def _outer(rows: torch.Tensor, gradient: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """The sum over each group's rows of row times gradient: (groups, in, out)."""
    if is_native(rows, (rows.shape[-1], gradient.shape[-1])):
        assert _native is not None
        product: torch.Tensor = _native(_aligned(rows).t(), _aligned(gradient), offs=ends)
        return product
    result = rows.new_zeros(len(ends), rows.shape[-1], gradient.shape[-1])
    start = 0
    for group, end in enumerate(ends.tolist()):
        if end > start:
            torch.mm(rows[start:end].t(), gradient[start:end], out=result[group])
        start = end
    return result


@_outer.register_fake
def _(rows, gradient, ends):  # type: ignore[no-untyped-def]
    return rows.new_empty(ends.shape[0], rows.shape[-1], gradient.shape[-1])
