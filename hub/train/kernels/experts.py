"""Low-rank adapters on the experts of a mixture, whose matrices transformers holds in tensors of three dimensions.

PEFT computes the changed tensor of all experts in each pass. Here the product of each adapter is added to that of its expert:

    y = x W_e + s (x A_e) B_e                                                          e: the expert of the token

with the tokens sorted by expert (`grouped.py`). What lies between the two products is the family's own. transformers marks
experts that can be computed so (`use_experts_implementation`): their attributes say how the tensors lie, nothing here knows a
family. Others keep PEFT's way.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from hub.models.patches import Edits
from hub.train.kernels.assumed import is_assumed
from hub.train.kernels.grouped import group_ends, grouped_product, is_native
from hub.train.kernels.grouped_four_bit import grouped_product_in_4_bits, held_parts

TOKENS = 5
"""Tokens of the trial."""

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest difference from the family's own pass, relative to its largest number. Other types: 5e-2."""


class Factors(NamedTuple):
    """What is added to the product of tokens with an expert's matrix: scaling * (x first) second."""

    first: torch.Tensor
    """(experts, in, r)."""

    second: torch.Tensor
    """(experts, r, out)."""

    scaling: float


def wide_and_narrow(experts: nn.Module) -> tuple[str, str]:
    """The names of the tensors of experts that `is_known`: of the product into the inner features, and of that out of them."""
    return ("gate_up_proj" if experts.has_gate else "up_proj"), "down_proj"


def is_known(experts: nn.Module) -> bool:
    """Whether transformers marks these experts as two products with what the family has between them."""
    marks = ("has_gate", "has_bias", "is_transposed", "num_experts")
    if not all(hasattr(experts, name) for name in marks) or getattr(experts, "_is_expert_parallel", False):
        return False
    if not hasattr(type(experts).forward, "__wrapped__") or not hasattr(
        experts, "_apply_gate" if experts.has_gate else "act_fn"
    ):
        return False
    tensors = [getattr(experts, name, None) for name in wide_and_narrow(experts)]
    return all(
        isinstance(tensor, torch.Tensor) and tensor.ndim == 3 and len(tensor) == experts.num_experts for tensor in tensors
    )


def experts_forward(
    experts: nn.Module,
    hidden: torch.Tensor,
    chosen: torch.Tensor,
    weights: torch.Tensor,
    adapters: Mapping[str, Sequence[Factors]],
) -> torch.Tensor:
    """Compute the experts' pass with their adapters.

    Args:
        experts: those that `is_known`.
        hidden: (tokens, features).
        chosen: (tokens, k) the experts of each token.
        weights: (tokens, k) of their results.
        adapters: by the tensor's name.

    Returns:
        (tokens, features), in the dtype of `hidden`.
    """
    own: Any = experts
    wide, narrow = wide_and_narrow(experts)
    of_rows, order = torch.sort(chosen.reshape(-1), stable=True)
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    ends = group_ends(of_rows, own.num_experts)
    rows = _Dispatched.apply(hidden.to(_dtype_of(own, wide)), order, back)  # type: ignore[no-untyped-call]
    inner = _linear(own, wide, rows, of_rows, ends, adapters.get(wide, ()))
    inner = own._apply_gate(inner) if own.has_gate else own.act_fn(inner)
    result = _linear(own, narrow, inner, of_rows, ends, adapters.get(narrow, ()))
    if getattr(own, "has_post_expert_norm", False):
        result = own.post_expert_norm(result)
    result = _Ordered.apply(result, back, order).unflatten(0, chosen.shape)  # type: ignore[no-untyped-call]
    return cast(torch.Tensor, (result * weights.unsqueeze(-1)).sum(dim=1).to(hidden.dtype))


def _linear(
    experts: Any, name: str, rows: torch.Tensor, of_rows: torch.Tensor, ends: torch.Tensor, adapters: Sequence[Factors]
) -> torch.Tensor:
    """The product of sorted rows with the tensor of a name, its adapters and its bias."""
    rows = rows.to(_dtype_of(experts, name)).contiguous()
    if (packed := held_parts(experts, wide_and_narrow(experts), name)) is not None:
        parts, is_transposed = packed
        result = grouped_product_in_4_bits(rows, parts, ends, is_transposed == bool(experts.is_transposed))
    else:
        weight: torch.Tensor = getattr(experts, name).to(rows.dtype)
        result = grouped_product(rows, weight if experts.is_transposed else weight.transpose(-2, -1), ends)
    for first, second, scaling in adapters:
        first, second = _of_kernel_size(rows, first.to(rows.dtype), second.to(rows.dtype))
        result = result + grouped_product(grouped_product(rows, first, ends), second, ends) * scaling
    if experts.has_bias:
        result = result + getattr(experts, f"{name}_bias")[of_rows].to(rows.dtype)
    return result


def _dtype_of(experts: Any, name: str) -> torch.dtype:
    """The dtype in which a tensor's products are taken: its own, or autocast's in place of float32."""
    packed = held_parts(experts, wide_and_narrow(experts), name)
    if packed is not None:
        return packed[0].dtype
    weight: torch.Tensor = getattr(experts, name)
    if weight.dtype == torch.float32 and torch.is_autocast_enabled(weight.device.type):
        return torch.get_autocast_dtype(weight.device.type)
    return weight.dtype


def _of_kernel_size(rows: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors whose rank torch's kernel takes: zeros are added to a rank that is no multiple of 8."""
    rank = first.shape[-1]
    more = -rank % 8
    if not more or not is_native(rows, (rows.shape[-1], rank + more, second.shape[-1])):
        return first, second
    return nn.functional.pad(first, (0, more)), nn.functional.pad(second, (0, 0, 0, more))


class _Dispatched(torch.autograd.Function):
    """Each token once for each of its experts, sorted by expert. The gradient of a token is a sum, in the same order always."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, order: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(back)
        ctx.tokens = len(hidden)
        return hidden[order // (len(order) // len(hidden))]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return gradient[back].unflatten(0, (ctx.tokens, -1)).sum(dim=1), None, None


class _Ordered(torch.autograd.Function):
    """Rows in another order: row i is row `places[i]`. `back` is the order that undoes it."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, places: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(back)
        return rows[places]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return gradient[back], None, None


def compute_here(edits: Edits, chosen: Iterable[nn.Module]) -> None:
    """Let experts without adapters compute by `experts_forward`, those of each class for which it agrees with their own pass.

    Args:
        edits: take the changed forward passes.
        chosen: experts that are `is_known`.
    """
    agreed: dict[type, bool] = {}
    for experts in chosen:
        if type(experts) not in agreed:
            agreed[type(experts)] = agrees(experts)
        if agreed[type(experts)]:
            edits.assign(experts, "forward", _forward_of(experts, experts.forward))


def _forward_of(experts: nn.Module, plain: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def forward(*args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        if kwargs or len(args) != 3:
            return plain(*args, **kwargs)
        return experts_forward(experts, *args, adapters={})

    return forward


@torch.no_grad()
def agrees(experts: nn.Module) -> bool:
    """Whether the pass here gives what the family's own gives, expert by expert, on a few tokens. Without data: yes."""
    own: Any = experts
    weight: torch.Tensor = getattr(own, wide_and_narrow(own)[0])
    if weight.is_meta or is_assumed():
        return True
    features, each = weight.shape[1 if own.is_transposed else 2], min(2, own.num_experts)
    numbers = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, features, generator=numbers).to(weight.device, weight.dtype)
    chosen = (torch.arange(TOKENS * each, device=weight.device) % own.num_experts).view(TOKENS, each)
    weights = torch.rand(TOKENS, each, generator=numbers).to(weight.device, weight.dtype)
    with torch.autocast(weight.device.type, enabled=False):
        ours = experts_forward(own, hidden, chosen, weights, {}).double()
        theirs: torch.Tensor = type(own).forward.__wrapped__(own, hidden, chosen, weights).double()
    off = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12))
    return off <= TOLERANCE.get(weight.dtype, 5e-2)
