"""Memory that kernels on a GPU take for themselves while they run, which shapes alone do not show."""

from typing import Any

import torch
from torch.fx import Node

ATTENTION_BACKWARD = ("torch_attn::_varlen_attn_backward", "aten::_scaled_dot_product_flash_attention_backward")
"""FlashAttention's backward pass. It sums the gradient of the queries in float32 (Dao, arXiv 2307.08691, section 3.1.2), and
writes the gradients of keys and values for each query head if several share one."""

PRODUCT_4BIT = "hub::product_4bit"
"""A product with a 4-bit weight, which is unpacked for it (`hub.train.kernels.unpack`)."""

EXPERTS_4BIT = "hub::grouped_product_4bit"
"""The same for the matrices of all experts of a layer (`hub.train.kernels.grouped_four_bit`)."""


def _of_call(name: str, args: Any) -> int:
    if name.startswith(ATTENTION_BACKWARD):
        query, key = args[1], args[2]
        heads, key_heads = query.shape[-2], key.shape[-2]
        if name.startswith(ATTENTION_BACKWARD[1]):
            heads, key_heads = query.shape[1], key.shape[1]
        gradient = 4 * query.numel()
        shared = 2 * query.numel() * query.element_size() if heads != key_heads else 0
        return int(gradient + shared)
    if name == PRODUCT_4BIT:
        rows, columns = args[9]
        return int(rows * columns * args[0].element_size())
    if name == EXPERTS_4BIT:
        return int(torch.Size(args[11]).numel() * args[0].element_size())
    return 0


class _Scratch:
    """Operator's name -> function of its arguments."""

    def get(self, name: str) -> Any:
        """The function for an operator; None if it takes nothing for itself."""
        name = name.partition(".")[0]
        if not name.startswith((*ATTENTION_BACKWARD, PRODUCT_4BIT, EXPERTS_4BIT)):
            return None
        return lambda args: _of_call(name, args)

    def __bool__(self) -> bool:
        return True


scratch_of_call: Any = _Scratch()
"""For `Live`."""


def scratch_of_node(node: Node) -> int:
    """Bytes that a node of a graph takes for itself."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return 0
    function = scratch_of_call.get(node.target.name())
    if function is None:
        return 0
    return int(function([arg.meta.get("val") if isinstance(arg, Node) else arg for arg in node.args]))
