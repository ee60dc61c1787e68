"""Experts in 4 bits in training: nothing is saved in full, compilers can follow them, and the hub's kernel dequantizes them."""

from collections.abc import Iterator, Sequence

import torch

from hub.models.four_bit_tensor import FourBitTensor, unpacked
from hub.models.patches import Edits, ModelPatches, Patch
from hub.train.kernels.experts import compute_here, is_known, wide_and_narrow
from hub.train.kernels.grouped_four_bit import parts_of
from hub.train.kernels.unpack import unpack_by_kernel


class FrozenExperts(Patch):
    """Experts in 4 bits that have no adapters compute as those that have some, so that nothing is saved in full.

    Args:
        model: with or without adapters of PEFT.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model

    def apply(self, edits: Edits) -> None:
        compute_here(edits, packed_experts(self._model))


class PackedExperts(Patch):
    """What experts in 4 bits consist of lies beside them as plain tensors, which a compiler can follow.

    Args:
        model: whose experts stay on their device from now on.
        by_kernel: whether the hub's kernel dequantizes them.
    """

    def __init__(self, model: torch.nn.Module, by_kernel: bool) -> None:
        self._model, self._by_kernel = model, by_kernel

    def apply(self, edits: Edits) -> None:
        for module in packed_experts(self._model):
            tensors = [getattr(module, name) for name in wide_and_narrow(module)]
            held = [part for tensor in tensors for part in (*parts_of(tensor, self._by_kernel), tensor.is_transposed)]
            edits.assign(module, "hub_packed", tuple(held))

    def report(self, plan: dict[str, object]) -> None:
        plan["unpacking_of_experts"] = "the hub's kernel" if self._by_kernel else "torch"


def packed_experts(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The experts of a model that are in 4 bits, and whose pass is known here."""
    return [module for module in model.modules() if _is_packed(module) and is_known(module)]


def use_packed(patches: ModelPatches, model: torch.nn.Module) -> None:
    """Prepare experts in 4 bits for compiled layers, with the hub's kernel if it gives exactly the numbers of torch's own.

    The first layer's tensor is the trial. The decision goes to plan.json.
    """
    modules = packed_experts(model)
    if not modules:
        return
    problem = _problem([tensor for module in modules for tensor in _packed_of(module)])
    patches.decide("unpacking_of_experts", "torch", problem or "the same numbers in one kernel")
    patches.apply(PackedExperts(model, by_kernel=not problem))


def _problem(tensors: Sequence[FourBitTensor]) -> str:
    """Why the hub's kernel can't dequantize these. Empty: it can."""
    for tensor in tensors:
        if not tensor.is_cuda or torch.version.hip:
            return "the hub's kernel needs an NVIDIA GPU"
        if tensor.parts.per_scale % 8 or torch.Size(tensor.parts.shape).numel() % 8:
            return "their sizes are no multiples of 8"
    try:
        first = min(tensors, key=lambda tensor: tensor.numel())
        if not torch.equal(unpack_by_kernel(*parts_of(first, by_kernel=True)), unpacked(first.parts)):
            return "its numbers differ from torch's"
    except Exception as error:  # whatever its compiler raises, torch does the same
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return ""


def _packed_of(module: torch.nn.Module) -> Iterator[FourBitTensor]:
    for parameter in module._parameters.values():
        if isinstance(parameter, FourBitTensor):
            yield parameter


def _is_packed(module: torch.nn.Module) -> bool:
    return next(_packed_of(module), None) is not None
