"""Shared parts of the tests of GPU optimizations."""

import sys
from types import SimpleNamespace

import pytest
import torch

import hub.train.kernels
from hub.train.kernels.attention import torch_kernel


@pytest.fixture(autouse=True)
def no_stand_in_is_kept():
    """A kernel that a test put in place of torch's is not that of later tests."""
    yield
    torch_kernel.cache_clear()


def unpack_plainly(words, table, scales, nested, per_scale, per_group, shape, dtype):
    """What `hub.train.kernels.four_bit_kernel.unpack` does, in plain operations."""
    pairs = words.view(torch.uint8)
    codes = torch.stack([pairs >> 4, pairs & 15], 1).flatten().long()
    if nested is not None:
        of_scales, groups, offset = nested
        scales = of_scales[scales.long()] * groups.repeat_interleave(per_group)[: len(scales)] + offset
    return (table[codes] * scales.repeat_interleave(per_scale)[: len(codes)]).to(dtype).view(*shape)


def instead_of_the_kernel(monkeypatch, module):
    """Let this be imported in its place; None: it can't be imported."""
    monkeypatch.delattr(hub.train.kernels, "four_bit_kernel", raising=False)  # once imported, it is found there first
    monkeypatch.setitem(sys.modules, "hub.train.kernels.four_bit_kernel", module)


@pytest.fixture
def no_kernel(monkeypatch):
    """The kernel can't be imported."""
    instead_of_the_kernel(monkeypatch, None)


@pytest.fixture
def plain_unpacking(monkeypatch):
    """Plain operations in the place of the kernel, which takes a GPU."""
    instead_of_the_kernel(monkeypatch, SimpleNamespace(unpack=unpack_plainly))
