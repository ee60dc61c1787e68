"""Memory that kernels on a GPU take for themselves while they run, which shapes alone do not show."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from hub.models.four_bit_tensor import Parts

ATTENTION_BACKWARD = ("torch_attn::_varlen_attn_backward", "aten::_scaled_dot_product_flash_attention_backward")
"""FlashAttention's backward pass. It sums the gradient of the queries in float32 (Dao, arXiv 2307.08691, section 3.1.2), and
writes the gradients of keys and values for each query head if several share one."""

PRODUCT_4BIT = "hub::product_4bit"
"""A product with a 4-bit weight, which is unpacked for it (`hub.train.kernels.unpack`)."""

EXPERTS_4BIT = "hub::grouped_product_4bit"
"""A product with the 4-bit matrices of all experts of a layer (`hub.train.kernels.grouped_four_bit`)."""

_SHAPE = Parts._fields.index("shape")
"""Place of a packed weight's shape among the parts, which follow the other arguments."""


def scratch_of_call(name: str, args: Sequence[Any]) -> int:
    """Bytes that an operator takes for itself. 0: nothing, or it is not known here.

    Args:
        name: of the operator, with its overload or without.
        args: of the call.
    """
    name = name.partition(".")[0]
    if name.startswith(ATTENTION_BACKWARD):
        query, key = args[1], args[2]
        heads, key_heads = query.shape[-2], key.shape[-2]
        if name.startswith(ATTENTION_BACKWARD[1]):
            heads, key_heads = query.shape[1], key.shape[1]
        gradient = 4 * query.numel()
        shared = 2 * query.numel() * query.element_size() if heads != key_heads else 0
        return int(gradient + shared)
    if name in (PRODUCT_4BIT, EXPERTS_4BIT):
        others = 1 if name == PRODUCT_4BIT else 3
        return int(torch.Size(args[others + _SHAPE]).numel() * args[0].element_size())
    return 0


def scratch_of_node(node: Node) -> int:
    """Bytes that a node of a graph takes for itself."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return 0
    return scratch_of_call(node.target.name(), [arg.meta.get("val") if isinstance(arg, Node) else arg for arg in node.args])
