"""The kernels of torch's FlexAttention: attention over an interval of tokens, with a soft cap of the scores and with sinks.

Dong et al., "Flex Attention: A Programming Model for Generating Optimized Attention Kernels" (arXiv 2412.05496).
"""

from collections.abc import Callable, Collection
from contextlib import nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from hub.errors import one_line
from hub.train.kernels.assumed import is_assumed
from hub.train.kernels.attention import UnsuitedError, torch_kernel
from hub.train.kernels.seen_blocks import BLOCK, SeenBlocks, first_seen, seen_blocks

OPTIONS = {"FORCE_USE_FLEX_ATTENTION": True}
"""The kernel for training also for short rows: the one for decoding would be one more version, and has no backward pass."""


class HeadKind(NamedTuple):
    """What a model asks of its attention."""

    heads: int
    key_heads: int
    head_size: int
    value_size: int
    scale: float | None
    softcap: float | None
    sinks: bool


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    seen: SeenBlocks,
    scale: float | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Compute attention, (R, heads, T, value size). Arguments as those of `attend`."""
    low = seen.low

    def sees(row: torch.Tensor, head: torch.Tensor, place: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (other <= place) & (other >= low[place])

    length = query.shape[2]
    mask = BlockMask((length, length), *seen[1:], BLOCK_SIZE=(BLOCK, BLOCK), mask_mod=sees)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    score_mod = None if softcap is None else _capped(softcap)
    if query.device.type == "cpu":
        return _with_sinks(*_on_cpu(query, key, value, mask, scale, score_mod), sinks)
    options: dict[str, Any] = {"enable_gqa": query.shape[1] != key.shape[1], "kernel_options": OPTIONS}
    if sinks is None:
        output: torch.Tensor = flex_attention(query, key, value, score_mod, mask, scale, **options)
        return output
    output, more = flex_attention(query, key, value, score_mod, mask, scale, **options, return_aux=AuxRequest(lse=True))
    return _with_sinks(output, more.lse, sinks)


def _capped(softcap: float) -> Callable[..., torch.Tensor]:
    def capped(
        score: torch.Tensor, row: torch.Tensor, head: torch.Tensor, place: torch.Tensor, other: torch.Tensor
    ) -> torch.Tensor:
        return torch.tanh(score / softcap) * softcap

    return capped


def _on_cpu(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: BlockMask, scale: float, score_mod: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute attention and the logarithms of the sums by the operator's own reference, which makes matrices of T x T.

    `flex_attention` refuses gradients on a CPU. The operator below it has them.
    """
    from torch._higher_order_ops.flex_attention import flex_attention as operator
    from torch.nn.attention.flex_attention import _identity

    # In a checkpointed layer it would run the layer again to differentiate the score's function.
    saved = nullcontext() if torch.compiler.is_compiling() else saved_tensors_hooks(_as_it_is, _as_it_is)
    with saved:
        output, sums, *_ = operator(query, key, value, score_mod or _identity, mask.as_tuple(), scale, dict(OPTIONS))
    return output, sums * 0.6931471805599453  # they are in base 2


def _as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _with_sinks(output: torch.Tensor, sums: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
    """Let each head's sink take its share of the attention: one more score in the sum, without a value."""
    if sinks is None:
        return output
    share = torch.sigmoid(sums - sinks.to(sums.dtype)[None, :, None])
    return (output * share[..., None]).to(output.dtype)


RECOMPILE_LIMIT = 64
"""Versions of the kernels: of the kinds of heads, types and layouts in memory that a process meets. Beyond it torch would
compute attention without a kernel, with a matrix of T x T."""


@cache
def _compiled() -> Callable[..., torch.Tensor]:
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
    return torch.compile(_attend)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    seen: SeenBlocks,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute attention of each token over the tokens that it sees: one kernel on a GPU, compiled once for rows of any length.

    Args:
        query: (R, heads, T, head size).
        key: (R, key heads, T, head size). There may be fewer of them than heads.
        value: (R, key heads, T, value size).
        seen: what a token sees, the same in each row.
        scale: factor of the scores. None: one over the root of the head size.
        softcap: bound of the scaled scores: `softcap * tanh(score / softcap)`.
        sinks: (heads,) a score for each head that takes a share of the attention and has no value.

    Returns:
        (R, heads, T, value size).
    """
    if is_assumed():
        return _without_data(query, key, value, sinks)
    if not torch.compiler.is_compiling() and query.shape[2] == 1:
        # A length of 1 would be one more version of the kernels.
        return plain_attention(query, key, value, seen.low, scale, softcap, None if sinks is None else sinks.to(query.dtype))
    if torch.compiler.is_compiling() or query.device.type == "cpu":
        return _attend(query, key, value, seen, scale, softcap, sinks)
    return _by_kernel(query, key, value, seen, scale, softcap, sinks)


def _without_data(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
    """Return what the kernels would, for tensors without data: torch's other kernel for packed rows saves the same tensors."""
    if value.shape[-1] != query.shape[-1]:
        raise UnsuitedError("a plan of FlexAttention for values of another size than keys")
    rows, _, length, _ = query.shape
    kernel = torch_kernel(query.device)
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in kernel.options else {"is_causal": True}
    if "enable_gqa" in kernel.options:
        options["enable_gqa"] = query.shape[1] != key.shape[1]
    starts = torch.arange(0, rows * length + 1, length, dtype=torch.int32, device=query.device)
    flat = [part.transpose(1, 2).flatten(0, 1) for part in (query, key, value)]
    output = kernel.attend(*flat, starts, starts, length, length, **options).unflatten(0, (rows, length)).transpose(1, 2)
    return _with_sinks(output, output[..., 0].float(), sinks)


def _by_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    seen: SeenBlocks,
    scale: float | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Compute it by compiled kernels. Every input has a gradient, also in evaluation, and lengths may change: one is enough."""
    wants_gradient = torch.is_grad_enabled()
    with torch.enable_grad():
        query, key, value = map(_with_gradient, (query, key, value))
        if sinks is not None:
            sinks = _with_gradient(sinks.to(torch.float32, copy=True))  # neither a parameter nor of another type
        for part in (query, key, value):
            if part.shape[2] > 1:
                torch._dynamo.maybe_mark_dynamic(part, 2)
        seen.mark_dynamic()
        # Lengths alone change. Of a second scale or soft cap torch would make an argument, which the kernels do not take.
        with torch._dynamo.config.patch(automatic_dynamic_shapes=False, specialize_float=True):
            output = _compiled()(query, key, value, seen, scale, softcap, sinks)
    return output if wants_gradient else output.detach()


def _with_gradient(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.requires_grad else tensor.detach().requires_grad_()


LENGTHS = (129, 1, 200)
"""Tokens of the samples on which kernels are tried: of several blocks, and a last one that is not full."""

TOLERANCE = 2e-2
"""Largest relative difference from float32 that passes as rounding to half precision."""


@torch.enable_grad()
def problem(kinds: Collection[HeadKind], device: torch.device, dtype: torch.dtype) -> str:
    """Return why the kernels do not serve such heads on this device; empty if they do. Tried, with their gradients.

    Args:
        kinds: what the model asks for.
        device: of the model.
        dtype: of the arithmetic.
    """
    if not kinds:
        return "the model computes its attention itself"
    positions = torch.cat([torch.arange(length, device=device) for length in LENGTHS])
    seen = seen_blocks(first_seen(positions, window=100))
    for kind in sorted(kinds, key=str):
        try:
            difference = _difference(kind, seen, device, dtype)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a compiler raises, the model's own attention does the same
            return one_line(error)
        if not difference <= TOLERANCE:
            return f"its kernels give something else (relative difference {difference:.0e})"
    return ""


def _difference(kind: HeadKind, seen: SeenBlocks, device: torch.device, dtype: torch.dtype) -> float:
    """The greatest relative difference from plain attention in float32, of the result and the gradients."""
    chance = torch.Generator(device).manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=chance, device=device).to(dtype).requires_grad_()

    length = len(seen.low)
    # In memory heads come after tokens, as in models: the version of the kernels that is compiled here serves them too.
    sizes = (kind.heads, kind.head_size), (kind.key_heads, kind.head_size), (kind.key_heads, kind.value_size)
    query, key, value = (numbers(1, length, *size).transpose(1, 2) for size in sizes)
    sinks = numbers(kind.heads) if kind.sinks else None
    gradient = numbers(1, kind.heads, length, kind.value_size).detach()
    output = attend(query, key, value, seen, kind.scale, kind.softcap, sinks)
    parts = [part for part in (query, key, value, sinks) if part is not None]
    exact = [part.detach().float().requires_grad_() for part in parts]
    last = exact[3] if kind.sinks else None
    expected = plain_attention(exact[0], exact[1], exact[2], seen.low, kind.scale, kind.softcap, last)
    found = [output.detach(), *torch.autograd.grad(output, parts, gradient)]
    wanted = [expected.detach(), *torch.autograd.grad(expected, exact, gradient.float())]
    return max(float((one.float() - other).norm() / other.norm()) for one, other in zip(found, wanted, strict=True))


def plain_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    low: torch.Tensor,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute what `attend` does by plain operations, with a matrix of T x T. Arguments as there.

    Args:
        query: (R, heads, T, head size).
        key: (R, key heads, T, head size).
        value: (R, key heads, T, value size).
        low: (T,) the first token that each token sees.
        scale: factor of the scores.
        softcap: bound of the scaled scores.
        sinks: (heads,)
    """
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores if softcap is None else torch.tanh(scores / softcap) * softcap
    places = torch.arange(len(low), device=low.device)
    scores = scores.masked_fill((places > places[:, None]) | (places < low[:, None]), -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks[None, :, None, None].expand(*scores.shape[:3], 1)], dim=-1)
    return scores.softmax(-1)[..., : len(low)] @ value
