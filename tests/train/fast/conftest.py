"""Shared parts of the tests of fast ways."""

import sys
from types import SimpleNamespace

import pytest
import torch


def unpack_plainly(words, table, scales, nested, per_scale, per_group, shape, dtype):
    """What `hub.train.fast.four_bit_kernel.unpack` does, in plain operations."""
    pairs = words.view(torch.uint8)
    codes = torch.stack([pairs >> 4, pairs & 15], 1).flatten().long()
    if nested is not None:
        of_scales, groups, offset = nested
        scales = of_scales[scales.long()] * groups.repeat_interleave(per_group)[: len(scales)] + offset
    return (table[codes] * scales.repeat_interleave(per_scale)[: len(codes)]).to(dtype).view(*shape)


@pytest.fixture
def plain_unpacking(monkeypatch):
    """Plain operations in the place of the kernel, which takes a GPU."""
    monkeypatch.setitem(sys.modules, "hub.train.fast.four_bit_kernel", SimpleNamespace(unpack=unpack_plainly))
