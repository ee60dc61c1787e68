"""Attention over a packed row by torch's FlexAttention: for models that need more than a variable-length kernel offers.

That is a soft cap of the scores (Gemma 2), sinks (gpt-oss), windows or chunks that only a mask has (Llama 4, Phi-3.5-MoE), or
heads of any size. No matrix of tokens x tokens is made. A token sees an interval of tokens: from `low`, the first one of its
sample, window or chunk, to itself. `low` never falls along a row. So which blocks of 128 x 128 tokens are seen, and which of
them whole, follows from each block's first and last token (`seen_blocks`). It is made once for a micro-batch and kind of layers.

FlexAttention: Dong et al., "Flex Attention: A Programming Model for Generating Optimized Attention Kernels" (arXiv 2412.05496).
"""

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, NamedTuple

import torch
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig

from hub.models.patches import Edits, patches_of
from hub.train.kernels.attention import PackedAttention, UnsuitedError

FLEX = "hub_flex"
"""Name in transformers' registries of attention and of masks. Must not contain `flash` nor be `flex_attention`."""

BLOCK = 128
"""Tokens of a block of queries or keys: torch's default, which its kernels divide."""

OPTIONS = {"FORCE_USE_FLEX_ATTENTION": True}
"""The kernel for training also for short rows: the one for decoding would be one more version, and has no backward pass."""


class SeenBlocks(NamedTuple):
    """Which tokens each token of a row sees: an interval that ends with itself. All are int32, n is the number of blocks.

    Blocks that are seen in part and those that are seen whole are listed apart, by queries and by keys. The names are those of
    `BlockMask`.
    """

    low: torch.Tensor
    """(T,) the first token that each token sees."""

    kv_num_blocks: torch.Tensor
    """(1, 1, n)"""
    kv_indices: torch.Tensor
    """(1, 1, n, n)"""
    full_kv_num_blocks: torch.Tensor
    full_kv_indices: torch.Tensor
    q_num_blocks: torch.Tensor
    q_indices: torch.Tensor
    full_q_num_blocks: torch.Tensor
    full_q_indices: torch.Tensor


class HeadKind(NamedTuple):
    """What a model asks of its attention."""

    heads: int
    key_heads: int
    head_size: int
    value_size: int
    scale: float | None
    softcap: float | None
    sinks: bool


def first_seen(positions: torch.Tensor, window: int | None = None, chunk: int | None = None) -> torch.Tensor:
    """Return the first token that each token of a row sees, (T,) int32.

    Args:
        positions: (T,) of each token in its sample.
        window: number of tokens that a token sees, itself included. None: all.
        chunk: tokens of a chunk: a token sees those of its own. Chunks begin with the sample. None: there are none.
    """
    positions = positions.int()
    reach = positions
    if window is not None:
        reach = reach.clamp(max=window - 1)
    if chunk is not None:
        reach = torch.minimum(reach, positions % chunk)
    return torch.arange(len(positions), dtype=torch.int32, device=positions.device) - reach


def seen_blocks(low: torch.Tensor, block: int = BLOCK) -> SeenBlocks:
    """List the blocks that are seen. None of the operations waits for the GPU.

    Args:
        low: (T,) int32, never falling: the first token that each token sees. The last one is itself.
        block: tokens of a block.
    """
    length = len(low)
    num = -(-length // block)
    blocks = torch.arange(num, dtype=torch.int32, device=low.device)
    last = (blocks * block + block - 1).clamp(max=length - 1)
    begin = low[::block] // block  # the first block that is seen in part
    whole = torch.minimum((low[last] + block - 1) // block, blocks)  # the first one that is seen whole
    if length % block:
        whole[-1] = num - 1  # as torch does: the kernels would read behind the row otherwise
    # A block of keys is seen in part from its own block of queries to `end`, but for those up to `until`, which see it whole.
    end = torch.searchsorted(begin, blocks, right=True, out_int32=True) - 1
    until = torch.maximum(torch.searchsorted(whole, blocks, right=True, out_int32=True) - 1, blocks)
    places = blocks[None]
    own = blocks[:, None]

    def indices(found: torch.Tensor) -> torch.Tensor:
        return found.clamp(0, num - 1).contiguous()[None, None]

    def counts(found: torch.Tensor) -> torch.Tensor:
        return found.contiguous()[None, None]

    return SeenBlocks(
        low,
        counts(whole - begin + 1),
        indices(torch.where(places < (whole - begin)[:, None], begin[:, None] + places, own)),
        counts(blocks - whole),
        indices(whole[:, None] + places),
        counts(end - until + 1),
        indices(torch.where(places > 0, until[:, None] + places, own)),
        counts(until - blocks),
        indices(own + 1 + places),
    )


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

    output, sums, *_ = operator(query, key, value, score_mod or _identity, mask.as_tuple(), scale, dict(OPTIONS))
    return output, sums * 0.6931471805599453  # they are in base 2


def _with_sinks(output: torch.Tensor, sums: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
    """Let each head's sink take its share of the attention: one more score in the sum, without a value."""
    if sinks is None:
        return output
    share = torch.sigmoid(sums - sinks.to(sums.dtype)[None, :, None])
    return (output * share[..., None]).to(output.dtype)


@cache
def _compiled() -> Callable[..., torch.Tensor]:
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
    if torch.compiler.is_compiling() or query.device.type == "cpu":
        return _attend(query, key, value, seen, scale, softcap, sinks)
    if query.shape[2] > 1:
        for part in (query, key, value):
            torch._dynamo.maybe_mark_dynamic(part, 2)
        for part in seen:
            for dim, size in enumerate(part.shape):
                if size > 1:
                    torch._dynamo.maybe_mark_dynamic(part, dim)
    return _compiled()(query, key, value, seen, scale, softcap, sinks)


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


def uses_flex(model: torch.nn.Module) -> bool:
    """Whether the model's attention is FlexAttention."""
    return patches_of(model).find(FlexAttention) is not None


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
