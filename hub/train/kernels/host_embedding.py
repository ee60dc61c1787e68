"""An embedding offloaded to CPU memory: a micro-batch needs few of its many rows, and the GPU reads those itself.

Page-locked CPU memory has an address for the GPU as well. A tensor at that address is a CUDA tensor to torch, but takes no
GPU memory.
"""

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from hub.models.patches import Edits, ModelPatches, Patch
from hub.models.structure import input_embeddings
from hub.system.memory import free_host_memory_for_each


class _Address:
    """Page-locked CPU memory, described by CUDA's array interface."""

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held
        shape = (*held.shape[:-1], held.shape[-1] * held.element_size())
        self.__cuda_array_interface__ = {
            "shape": shape, "typestr": "|u1", "data": (held.data_ptr(), False), "strides": None, "version": 3
        }  # fmt: skip


class EmbeddingOnHost(Patch):
    """The embedding's weight lies in CPU memory. Undone, it is back on its device.

    Args:
        weight: a frozen one.
        mapped: the same numbers, as a tensor over CPU memory.
    """

    def __init__(self, weight: torch.Tensor, mapped: torch.Tensor) -> None:
        self._weight, self._mapped = weight, mapped

    def apply(self, edits: Edits) -> None:
        weight, mapped = self._weight, self._mapped

        def undo() -> None:
            weight.data = mapped.clone()

        weight.data = mapped
        edits.record(weight, "data", undo)

    def report(self, plan: dict[str, object]) -> None:
        plan["embedding_on_host"] = True


def offload_embedding(patches: ModelPatches, model: PreTrainedModel) -> str:
    """Move a model's embedding to CPU memory, if it is frozen and not tied to the output layer. The decision goes to plan.json.

    Args:
        patches: the owner of the model's patches.
        model: a transformers model on a GPU.

    Returns:
        Why it stays on the GPU; empty if it has moved.
    """
    mapped = _mapped_weight(model)
    problem = mapped if isinstance(mapped, str) else ""
    patches.decide("embedding_on_host", False, problem or "inputs of layers are offloaded too")
    if not isinstance(mapped, str):
        patches.apply(EmbeddingOnHost(input_embeddings(model).weight, mapped))
    return problem


def _mapped_weight(model: PreTrainedModel) -> torch.Tensor | str:
    """Return the embedding's weight in CPU memory, as the GPU sees it; or why there is none."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if type(embedding) is not torch.nn.Embedding or embedding.weight.requires_grad:
        return "it is trained, or is of another kind"
    weight = embedding.weight
    of_head = getattr(head, "weight", weight)
    if of_head.data_ptr() == weight.data_ptr():
        return "it is tied to the output layer, or there is no output layer"
    if not weight.is_cuda:
        return "it is not on a GPU"
    if free_host_memory_for_each() < 4 * weight.nbytes:
        return "CPU memory has no room for it"
    try:
        with torch.cuda.device(weight.device):
            held = torch.empty(weight.shape, dtype=weight.dtype, pin_memory=True)
            held.copy_(weight)
            mapped: torch.Tensor = torch.as_tensor(_Address(held), device=weight.device).view(weight.dtype)
            some = torch.arange(0, len(weight), max(1, len(weight) // 64), device=weight.device)
            if not torch.equal(F.embedding(some, mapped), F.embedding(some, weight)):
                return "the GPU reads other numbers there"
    except (RuntimeError, TypeError) as error:  # a driver or a torch version without support
        return str(error).strip().partition("\n")[0]
    return mapped
