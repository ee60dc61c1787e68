"""Attention over a packed row by torch's FlexAttention: for models that need more than a variable-length kernel offers.

That is a soft cap of the scores (Gemma 2), sinks (gpt-oss), windows or chunks that only a mask has (Llama 4, Phi-3.5-MoE), or
heads of any size. No matrix of tokens x tokens is made: transformers asks for the mask of each kind of layers, and gets lists
of blocks (`seen_blocks.py`), which it hands to these layers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig

from hub.models.patches import Edits
from hub.train.kernels.attention import PackedAttention, UnsuitedError
from hub.train.kernels.flex_kernel import HeadKind, attend
from hub.train.kernels.seen_blocks import SeenBlocks, first_seen, seen_blocks

FLEX = "hub_flex"
"""Name in transformers' registries of attention and of masks. Must not contain `flash` nor be `flex_attention`."""


class FlexAttention(PackedAttention):
    """The model's attention is torch's FlexAttention, with the masks that transformers asks for.

    Args:
        model: a transformers model.
    """

    positions: torch.Tensor | None = None
    """Of the micro-batch that a model runs now: transformers does not pass them on to masks."""

    found: set[HeadKind] | None = None
    """Collects what models ask for, during a trial."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(model, FLEX, "FlexAttention")

    def apply(self, edits: Edits) -> None:
        # Factors of scores are constants of the kernels. This belongs to the process, so it stays.
        torch._dynamo.config.specialize_float = True
        AttentionInterface.register(FLEX, attention)
        AttentionMaskInterface.register(FLEX, mask)
        edits.assign(self._base, "forward", _with_positions(self._base.forward))
        super().apply(edits)


@contextmanager
def observed() -> Iterator[set[HeadKind]]:
    """Within it the set grows by what models ask of FlexAttention."""
    FlexAttention.found = set()
    try:
        yield FlexAttention.found
    finally:
        FlexAttention.found = None


def _with_positions(plain: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        before, FlexAttention.positions = FlexAttention.positions, kwargs.get("position_ids")
        try:
            return plain(*args, **kwargs)
        finally:
            FlexAttention.positions = before

    return forward


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    config: PretrainedConfig,
    device: torch.device,
    local_size: int | None = None,
    use_vmap: bool = False,
    **others: object,
) -> SeenBlocks:
    """Make the mask of a kind of layers. transformers calls it once for each kind, with these names.

    Args:
        batch_size: number of rows. Several rows may be padded on the right: no token sees a later one.
        q_length: tokens of a row.
        kv_length: the same.
        config: of the model.
        device: of the model.
        local_size: tokens of a window or of a chunk. None: all earlier tokens are seen.
        use_vmap: whether the model adds a rule of its own.
        others: further arguments. Those of masks that see later tokens are refused.

    Raises:
        UnsuitedError: the model needs another kind of mask.
    """
    if use_vmap or q_length != kv_length or "allow_is_bidirectional_skip" in others:
        raise UnsuitedError("FlexAttention with a mask that is not causal, of a cache, or of a model's own rule")
    positions = FlexAttention.positions
    if batch_size > 1 or positions is None:
        positions = torch.arange(q_length, device=device)[None]
    if positions.shape != (1, q_length):
        raise UnsuitedError(f"FlexAttention for positions of shape {tuple(positions.shape)}")
    return seen_blocks(first_seen(positions[0], *_window_and_chunk(config, local_size)))


def _window_and_chunk(config: PretrainedConfig, local_size: int | None) -> tuple[int | None, int | None]:
    """Tell which of the two a local size is. transformers takes it from the config, by either name."""
    if local_size is None:
        return None, None
    window, chunk = (getattr(config, name, None) == local_size for name in ("sliding_window", "attention_chunk_size"))
    if window == chunk:
        raise UnsuitedError(f"FlexAttention where {local_size} tokens may be a window or a chunk")
    return (local_size, None) if window else (None, local_size)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: SeenBlocks | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **others: object,
) -> tuple[torch.Tensor, None]:
    """Compute attention under the names of transformers.

    Args:
        module: the attention layer.
        query: (R, heads, T, head size).
        key: (R, key heads, T, head size).
        value: (R, key heads, T, value size).
        attention_mask: what `mask` made.
        scaling: factor of the scores. None: one over the root of the head size.
        dropout: of the attention weights. Only 0 is supported.
        softcap: bound of the scores.
        s_aux: (heads,) sinks.
        others: further keywords of some models. Those that change the result are refused. Windows are in the mask.

    Returns:
        (R, T, heads, value size), and None.

    Raises:
        UnsuitedError: the model needs something that is not supported.
    """
    if dropout or others.get("position_bias") is not None or not isinstance(attention_mask, SeenBlocks):
        raise UnsuitedError("FlexAttention without dropout, with a mask of its own, and without a bias of positions")
    wanted = value.dtype
    if wanted == torch.float32 and torch.is_autocast_enabled(query.device.type):
        wanted = torch.get_autocast_dtype(query.device.type)
    query, key, value = (part.to(wanted) for part in (query, key, value))
    if FlexAttention.found is not None and not torch.compiler.is_compiling():
        sizes = (query.shape[1], key.shape[1], query.shape[-1], value.shape[-1])
        FlexAttention.found.add(HeadKind(*sizes, scaling, softcap, s_aux is not None))
    output = attend(query, key, value, attention_mask, scaling, softcap, s_aux)
    return output.transpose(1, 2).contiguous(), None
