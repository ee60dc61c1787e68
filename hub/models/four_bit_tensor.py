"""Tensors in 4 bits: the fused matrices of a mixture's experts, as NF4 or MXFP4.

bitsandbytes has layers in 4 bits, and experts are no layers. Here a parameter itself is in 4 bits. It has the shape and the
dtype that it would have in full, and whatever computes with it gets its numbers, dequantized for the one operation.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_map

NF4_BLOCK = 64
"""Weights that share a scale (QLoRA, arXiv 2305.14314)."""

MXFP4_BLOCK = 32
"""Weights that share a scale (OCP Microscaling Formats 1.0, section 5.2)."""

MXFP4_TABLE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The value of each code (E2M1)."""

BLOCKS_AT_ONCE = 2**18
"""Blocks that are dequantized together, so that indices take little memory."""


class Parts(NamedTuple):
    """What a tensor in 4 bits consists of, in the order of the operators' arguments (`hub.train.kernels.unpack`)."""

    words: torch.Tensor
    """Two codes in a byte, the first in the upper half: uint8, or int32 where the kernel takes them."""

    table: torch.Tensor
    """(16,) float32: the value of each code."""

    scales: torch.Tensor
    """One for each `per_scale` weights: float32, or uint8, codes of `codes`."""

    codes: torch.Tensor | None
    """(256,) float32: the value of each code of the scales."""

    groups: torch.Tensor | None
    """float32: the scale of each `per_group` scales."""

    offset: torch.Tensor | None
    """float32 scalar: what is added to each scale."""

    per_group: int
    per_scale: int
    shape: list[int]
    """As it is stored."""

    dtype: torch.dtype
    """Of the numbers."""


NUM_PARTS = len(Parts._fields)
NUM_TENSORS = 6
"""The first parts, which are tensors or None."""

_TENSORS = Parts._fields[:NUM_TENSORS]


class FourBitTensor(torch.Tensor):
    """A frozen tensor in 4 bits.

    Args:
        parts: what it consists of.
        is_transposed: whether its last two dimensions are those of `parts.shape` exchanged.
    """

    parts: Parts
    is_transposed: bool

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, parts: Parts, is_transposed: bool = False) -> "FourBitTensor":
        strides = [1] * len(parts.shape)
        for dim in range(len(parts.shape) - 2, -1, -1):
            strides[dim] = strides[dim + 1] * parts.shape[dim + 1]
        shape = list(parts.shape)
        if is_transposed:
            shape[-2:], strides[-2:] = shape[:-3:-1], strides[:-3:-1]
        made: FourBitTensor = torch.Tensor._make_wrapper_subclass(
            cls, shape, strides=strides, dtype=parts.dtype, device=parts.words.device, requires_grad=False
        )
        return made

    def __init__(self, parts: Parts, is_transposed: bool = False) -> None:
        self.parts, self.is_transposed = parts, is_transposed
        for name in _TENSORS:
            setattr(self, name, getattr(parts, name))

    def __repr__(self, **given: object) -> str:  # type: ignore[override]
        return f"FourBitTensor({list(self.shape)}, {self.dtype}, {self.device})"

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        names = [name for name in _TENSORS if getattr(self, name) is not None]
        without: Any = dict.fromkeys(names)
        return names, (self.parts._replace(**without), self.is_transposed)

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, torch.Tensor], context: Any, size: object, stride: object) -> "FourBitTensor":
        parts, is_transposed = context
        return FourBitTensor(parts._replace(**inner), is_transposed)

    @property
    def num_bytes(self) -> int:
        """Bytes that it takes, its scales included."""
        return sum(part.numel() * part.element_size() for part in self.parts if isinstance(part, torch.Tensor))

    @property
    def format(self) -> str:
        """nf4 or mxfp4."""
        return "mxfp4" if self.parts.per_scale == MXFP4_BLOCK else "nf4"

    def dequantized(self) -> torch.Tensor:
        """The numbers, as a plain tensor."""
        full = unpacked(self.parts)
        return full.mT if self.is_transposed else full

    def mapped(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "FourBitTensor":
        """One whose tensors are what a function makes of the tensors of this one."""
        new = [function(part) if isinstance(part, torch.Tensor) else part for part in self.parts]
        return FourBitTensor(Parts(*new), self.is_transposed)  # type: ignore[arg-type]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares no method
        cls, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, aten, first = kwargs or {}, torch.ops.aten, args[0] if args else None
        if isinstance(first, FourBitTensor):
            if func in (aten.detach.default, aten.alias.default):
                return first.mapped(lambda part: part)
            if func is aten.clone.default:
                return first.mapped(torch.clone)
            if func is aten._to_copy.default and (dtype := kwargs.get("dtype") or first.dtype).is_floating_point:
                moved = first.mapped(lambda part: part.to(kwargs.get("device") or part.device))
                return FourBitTensor(moved.parts._replace(dtype=dtype), first.is_transposed)
            if func is aten.transpose.int and {dim % first.ndim for dim in args[1:]} == {first.ndim - 2, first.ndim - 1}:
                return FourBitTensor(first.parts, not first.is_transposed)
            if func is aten.select.int and args[1] % first.ndim == 0 and first.ndim == 3:
                return _one(first, args[2] % first.shape[0])
            if func._schema.is_mutable:
                raise NotImplementedError(f"{func}: a tensor in 4 bits can't be changed in place")
        return func(*tree_map(_plain, args), **tree_map(_plain, kwargs))


def unpacked(parts: Parts) -> torch.Tensor:
    """The numbers of a packed tensor: the product of value and scale in float32, rounded once, as bitsandbytes has it."""
    number = parts.scales.numel()
    if parts.words.device.type == "meta":
        return torch.empty(parts.shape, dtype=parts.dtype, device="meta")
    result = torch.empty(torch.Size(parts.shape).numel(), dtype=parts.dtype, device=parts.words.device)
    words = parts.words.reshape(-1).view(torch.uint8)
    for first in range(0, number, BLOCKS_AT_ONCE):
        last = min(first + BLOCKS_AT_ONCE, number)
        scales = _scales(parts, first, last)
        packed = words[first * parts.per_scale // 2 : last * parts.per_scale // 2]
        codes = torch.stack([packed >> 4, packed & 15], dim=-1).reshape(-1)
        values = parts.table[codes.int()]
        start, size = first * parts.per_scale, len(values)
        whole = size // parts.per_scale * parts.per_scale
        result[start : start + whole] = (
            values[:whole].view(-1, parts.per_scale) * scales[: whole // parts.per_scale, None]
        ).view(-1)
        if size > whole:  # the last block need not be full
            rest = min(size, len(result) - start)
            result[start + whole : start + rest] = values[whole:rest] * scales[-1]
    return result.view(parts.shape)


def _scales(parts: Parts, first: int, last: int) -> torch.Tensor:
    """The scales of blocks, in float32."""
    scales = parts.scales[first:last]
    if parts.codes is None or parts.groups is None or parts.offset is None:
        return scales
    group = torch.arange(first, last, device=scales.device) // parts.per_group
    return parts.codes[scales.int()] * parts.groups[group] + parts.offset


def _one(tensor: FourBitTensor, index: int) -> torch.Tensor:
    """One of the matrices of a tensor in 4 bits, in full."""
    parts = tensor.parts
    _, rows, columns = parts.shape
    size = rows * columns
    if size % parts.per_scale or parts.words.device.type == "meta":
        return tensor.dequantized()[index]
    blocks = size // parts.per_scale
    words = parts.words.reshape(-1).view(torch.uint8)[index * size // 2 : (index + 1) * size // 2]
    scales = _scales(parts, index * blocks, (index + 1) * blocks)
    matrix = unpacked(Parts(words, parts.table, scales, None, None, None, 1, parts.per_scale, [rows, columns], parts.dtype))
    return matrix.mT if tensor.is_transposed else matrix


def _plain(value: Any) -> Any:
    return value.dequantized() if isinstance(value, FourBitTensor) else value


def in_nf4(weight: torch.Tensor) -> FourBitTensor:
    """Quantize a tensor to NF4 with scales in 8 bits (QLoRA, arXiv 2305.14314), by bitsandbytes.

    Args:
        weight: in the dtype of the arithmetic.
    """
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(
        weight.detach().contiguous(), blocksize=NF4_BLOCK, compress_statistics=True, quant_type="nf4"
    )
    nested = state.state2
    parts = Parts(
        packed.reshape(-1), state.code, state.absmax, nested.code, nested.absmax, state.offset,
        nested.blocksize, state.blocksize, list(weight.shape), weight.dtype,
    )  # fmt: skip
    return FourBitTensor(parts)


def nf4_without_data(shape: Sequence[int], dtype: torch.dtype) -> FourBitTensor:
    """What `in_nf4` makes of a tensor, without data."""
    numel = torch.Size(shape).numel()
    blocks = -(-numel // NF4_BLOCK)

    def empty(size: int, kind: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(size, dtype=kind, device="meta")

    offset = torch.empty((), dtype=torch.float32, device="meta")
    return FourBitTensor(
        Parts(
            empty((numel + 1) // 2, torch.uint8), empty(16), empty(blocks, torch.uint8), empty(256), empty(-(-blocks // 256)),
            offset, 256, NF4_BLOCK, list(shape), dtype,
        )
    )  # fmt: skip


def in_mxfp4(blocks: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> FourBitTensor:
    """Take a tensor of experts as a checkpoint in MXFP4 has it, code by code: gpt-oss (arXiv 2508.10925).

    Args:
        blocks: (experts, out, in / 32, 16) uint8: two codes in a byte, the first in the lower half.
        scales: (experts, out, in / 32) uint8: exponents of 2, plus 127 (E8M0).
        dtype: of the numbers.

    Returns:
        (experts, in, out), as the family computes with it.
    """
    device = blocks.device
    words = blocks.contiguous().reshape(-1)
    words = (words << 4) | (words >> 4)
    powers = torch.ldexp(torch.ones(256, device=device), torch.arange(256, device=device, dtype=torch.int32) - 127)
    one, zero = torch.ones(1, device=device), torch.zeros((), device=device)
    codes = scales.contiguous().reshape(-1)
    experts, out, groups, _ = blocks.shape
    table = torch.tensor(MXFP4_TABLE, device=device)
    shape = [experts, out, groups * MXFP4_BLOCK]
    return FourBitTensor(
        Parts(words, table, codes, powers, one, zero, max(1, len(codes)), MXFP4_BLOCK, shape, dtype), is_transposed=True
    )


def as_parameter(tensor: FourBitTensor) -> torch.nn.Parameter:
    """A frozen parameter in 4 bits."""
    return torch.nn.Parameter(tensor, requires_grad=False)


def bytes_of(tensor: torch.Tensor) -> int:
    """Bytes that the numbers of a tensor take, with their scales if they are in 4 bits."""
    return tensor.num_bytes if isinstance(tensor, FourBitTensor) else tensor.numel() * tensor.element_size()
