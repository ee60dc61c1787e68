"""Attention over a packed row by the package flash-attn-4, as operators that compiled layers can hold.

Torch's own variable-length kernel is FlashAttention 2. This one (https://github.com/Dao-AILab/flash-attention) is made for
Hopper and Blackwell. Its kernels are compiled at their first use, which takes some seconds for each kind of head.
"""

import warnings
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PretrainedConfig

HEAD_SIZE = 128
"""Head size of the models that gain. On an H200 forward and backward took 0.61 of the time of torch's kernel with heads of 128
numbers, and 1.33 of it with 64 (32 heads of queries, 8 of keys)."""

ARCHITECTURES = (9, 10)
"""Major compute capabilities that it supports."""

TOLERANCE = 2e-2
"""Largest relative difference from float32 that passes as rounding to half precision."""


@torch.library.custom_op("hub::flash4_forward", mutates_args=())
def _forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts: torch.Tensor, longest: int, scale: float, back: int
) -> tuple[torch.Tensor, torch.Tensor]:
    from flash_attn.cute.interface import _flash_attn_fwd

    window = {"window_size_left": back, "window_size_right": 0} if back >= 0 else {}
    output, logsumexp, *_ = _flash_attn_fwd(
        query, key, value, cu_seqlens_q=starts, cu_seqlens_k=starts, max_seqlen_q=longest, max_seqlen_k=longest,
        softmax_scale=scale, causal=True, return_lse=True, **window,
    )  # fmt: skip
    return output.contiguous(), logsumexp


@_forward.register_fake
def _(query, key, value, starts, longest, scale, back):  # type: ignore[no-untyped-def]
    return query.new_empty(query.shape), query.new_empty((query.shape[1], query.shape[0]), dtype=torch.float32)


@torch.library.custom_op("hub::flash4_backward", mutates_args=())
def _backward(
    gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, output: torch.Tensor,
    logsumexp: torch.Tensor, starts: torch.Tensor, longest: int, scale: float, back: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    from flash_attn.cute.interface import _flash_attn_bwd

    window = {"window_size_left": back, "window_size_right": 0} if back >= 0 else {}
    of_query, of_key, of_value, *_ = _flash_attn_bwd(
        query, key, value, output, gradient.contiguous(), logsumexp, scale, causal=True,
        cu_seqlens_q=starts, cu_seqlens_k=starts, max_seqlen_q=longest, max_seqlen_k=longest, **window,
    )  # fmt: skip
    return of_query.contiguous(), of_key.contiguous(), of_value.contiguous()


@_backward.register_fake
def _(gradient, query, key, value, output, logsumexp, starts, longest, scale, back):  # type: ignore[no-untyped-def]
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    query, key, value, starts, ctx.longest, ctx.scale, ctx.back = inputs
    ctx.save_for_backward(query, key, value, starts, *output)


def _differentiate(ctx: Any, gradient: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
    query, key, value, starts, output, logsumexp = ctx.saved_tensors
    gradients = _backward(gradient, query, key, value, output, logsumexp, starts, ctx.longest, ctx.scale, ctx.back)
    return (*gradients, None, None, None, None)


_forward.register_autograd(_differentiate, setup_context=_keep)


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts: torch.Tensor, starts_k: torch.Tensor, longest: int,
    longest_k: int, *, scale: float | None = None, window_size: tuple[int, int] = (-1, 0), enable_gqa: bool = False,
) -> torch.Tensor:  # fmt: skip
    """Compute causal attention within each sample of a packed row. Called like `torch.nn.attention.varlen.varlen_attn`.

    Args:
        query: (tokens, heads, head size), bfloat16 or float16.
        key: (tokens, key heads, head size).
        value: the same.
        starts: (n + 1,) int32, the start of each sample, and the end of the last.
        starts_k: the same.
        longest: upper bound of the samples' lengths.
        longest_k: the same.
        scale: factor of the scores. None: one over the root of the head size.
        window_size: number of earlier tokens that a token sees (-1: all), and 0.
        enable_gqa: ignored. Key heads may always be fewer than query heads.

    Returns:
        (tokens, heads, head size).
    """
    output: torch.Tensor
    output, _ = _forward(query, key, value, starts, longest, scale or query.shape[-1] ** -0.5, window_size[0])
    return output


def problem(config: PretrainedConfig, device: torch.device, dtype: torch.dtype) -> str:
    """Return why a model can't use it, or gains nothing by it; empty if it should. Tried on heads like the model's.

    Args:
        config: of the model's text part, as transformers has it.
        device: of the training.
        dtype: of the arithmetic.
    """
    try:
        version("flash-attn-4")
    except PackageNotFoundError:
        return "flash-attn-4 is not installed"
    if device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(device)[0] not in ARCHITECTURES:
        return "it is made for Hopper and Blackwell"
    heads = getattr(config, "num_attention_heads", None)
    size = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else None)
    if not heads or size != HEAD_SIZE:
        return f"it is faster with heads of {HEAD_SIZE} numbers only, and these have {size}"
    if torch.are_deterministic_algorithms_enabled():
        return "its gradients depend on the order of sums"
    windows = {None, getattr(config, "sliding_window", None)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            off = max(
                _difference(heads, getattr(config, "num_key_value_heads", heads), window, device, dtype) for window in windows
            )
    except Exception as error:  # whatever its compiler raises, torch's kernel does the same
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return "" if off <= TOLERANCE else f"its results differ (relative difference {off:.0e})"


@torch.enable_grad()
def _difference(heads: int, key_heads: int, window: int | None, device: torch.device, dtype: torch.dtype) -> float:
    """Return the largest relative difference of its output and gradients from attention in float32, on two short samples."""
    lengths = (200, 57)
    numbers = torch.Generator(device).manual_seed(0)
    kinds = (heads, key_heads, key_heads, heads)
    *parts, gradient = (
        torch.randn(sum(lengths), number, HEAD_SIZE, device=device, generator=numbers).to(dtype) for number in kinds
    )
    exact = [part.float().requires_grad_() for part in parts]
    inputs = [part.requires_grad_() for part in parts]
    expected = []
    for rows in zip(*(part.split(lengths) for part in exact), strict=True):
        query, key, value = (row.transpose(0, 1)[None] for row in rows)
        seen = torch.ones(len(rows[0]), len(rows[0]), dtype=torch.bool, device=device).tril()
        seen = seen if window is None else seen & ~seen.tril(-window)
        expected.append(F.scaled_dot_product_attention(query, key, value, seen, enable_gqa=True)[0].transpose(0, 1))
    starts = torch.tensor([0, lengths[0], sum(lengths)], dtype=torch.int32, device=device)
    back = -1 if window is None else window - 1
    query, key, value = inputs
    output = attend(query, key, value, starts, starts, 256, 256, window_size=(back, 0))
    exactly = torch.cat(expected)
    results = [output, *torch.autograd.grad(output, inputs, gradient)]
    wanted = [exactly, *torch.autograd.grad(exactly, exact, gradient.float())]
    return max(float((one.float() - other).norm() / other.norm()) for one, other in zip(results, wanted, strict=True))
