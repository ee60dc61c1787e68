"""Which tokens each token of a row sees, as lists of blocks: what FlexAttention needs in place of a matrix of tokens x tokens.

In every mask that transformers makes for causal attention, a token sees an interval of tokens: from `low`, the first one of its
sample, window or chunk, to itself. `low` never falls along a row. So which blocks of 128 x 128 tokens are seen, and which of
them whole, follows from each block's first and last token. It is made once for a micro-batch and a kind of layers.
"""

from typing import NamedTuple

import torch

BLOCK = 128
"""Tokens of a block of queries or keys: torch's default, which its kernels divide."""


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

    def mark_dynamic(self) -> None:
        """Tell the compiler that the numbers of tokens and blocks may change."""
        for part in self:
            for dim, size in enumerate(part.shape):
                if size > 1:
                    torch._dynamo.maybe_mark_dynamic(part, dim)


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
    used = -(-length // block)
    num = max(2, used)  # a size of 1 would be one more version of the kernels. What is beyond the row sees itself alone
    blocks = torch.arange(num, dtype=torch.int32, device=low.device)
    first = (blocks * block).clamp(max=length - 1)
    last = (blocks * block + block - 1).clamp(max=length - 1)
    begin = low[first] // block  # the first block that is seen in part
    whole = torch.minimum((low[last] + block - 1) // block, blocks)  # the first one that is seen whole
    if length % block:
        whole[used - 1] = used - 1  # as torch does: its rows end within the block
    begin[used:], whole[used:] = blocks[used:], blocks[used:]
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
