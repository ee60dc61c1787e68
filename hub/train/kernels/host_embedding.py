"""An embedding that stays in the host's memory: of its many rows a micro-batch needs few, and the GPU fetches those itself.

Page-locked memory has an address for the GPU as well. To torch, a tensor at that address is one of the GPU's; no byte of it is
there.
"""

from typing import Any

import torch
import torch.nn.functional as F

from hub.system.memory import free_host_memory_for_each


class _Address:
    """The host's memory, as CUDA's array interface tells of it."""

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held
        shape = (*held.shape[:-1], held.shape[-1] * held.element_size())
        self.__cuda_array_interface__ = {
            "shape": shape, "typestr": "|u1", "data": (held.data_ptr(), False), "strides": None, "version": 3
        }  # fmt: skip


def hold_on_host(model: Any) -> str:
    """Let a model's embedding stay in the host's memory, if it is frozen and not the output layer too.

    Args:
        model: a transformers model on a GPU.

    Returns:
        Why it stays where it is; empty when it has moved.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if type(embedding) is not torch.nn.Embedding or embedding.weight.requires_grad:
        return "it learns, or is of another kind"
    weight = embedding.weight
    of_head = getattr(head, "weight", weight)
    if of_head.data_ptr() == weight.data_ptr():
        return "it is the output layer too, or there is none"
    if not weight.is_cuda:
        return "it is not on a GPU"
    if free_host_memory_for_each() < 4 * weight.nbytes:
        return "the host has no room for it"
    try:
        with torch.cuda.device(weight.device):
            held = torch.empty(weight.shape, dtype=weight.dtype, pin_memory=True)
            held.copy_(weight)
            mapped = torch.as_tensor(_Address(held), device=weight.device).view(weight.dtype)
            some = torch.arange(0, len(weight), max(1, len(weight) // 64), device=weight.device)
            if not torch.equal(F.embedding(some, mapped), F.embedding(some, weight)):
                return "the GPU reads other numbers there"
    except (RuntimeError, TypeError) as error:  # a driver or a torch that can't
        return str(error).strip().partition("\n")[0]
    weight.data = mapped
    return ""
