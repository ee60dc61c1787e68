"""Activation checkpointing: a layer saves its input alone, and runs again in the backward pass."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from hub.models.patches import Edits, ModelPatches, Patch
from hub.train.kernels.compiled import CompiledForward
from hub.train.kernels.offload import ActivationOffload


class Checkpointing(Patch):
    """Turns activation checkpointing on for some decoder layers.

    Args:
        layers: some of a model's. None of them checkpoints yet.
        offload: moves the layers' inputs to CPU memory. None: they stay on the GPU.
    """

    def __init__(self, layers: list[torch.nn.Module], offload: ActivationOffload | None = None) -> None:
        self.layers, self.offload = layers, offload

    def apply(self, edits: Edits) -> None:
        for layer in self.layers:
            forward = layer.forward
            if isinstance(forward, CompiledForward):
                forward.checkpoint(edits, self.offload)
            else:
                edits.assign(layer, "forward", _checkpointed(layer, forward, self.offload))

    def report(self, plan: dict[str, object]) -> None:
        before = plan.get("layers_recomputed", 0)
        assert isinstance(before, int)
        plan["layers_recomputed"] = before + len(self.layers)
        plan["activation_offload"] = plan.get("activation_offload", False) or self.offload is not None


def num_checkpointed(patches: ModelPatches) -> int:
    """Count the layers for which the hub has turned activation checkpointing on."""
    return sum(len(patch.layers) for patch in patches.all(Checkpointing))


def _checkpointed(
    layer: torch.nn.Module, plain: Callable[..., object], offload: ActivationOffload | None
) -> Callable[..., object]:
    """Return the forward pass of a layer that is not compiled."""

    def forward(*args: Any, **kwargs: Any) -> object:
        if not (layer.training and torch.is_grad_enabled()):
            return plain(*args, **kwargs)
        if offload is None:
            return checkpoint(plain, *args, use_reentrant=False, **kwargs)
        with offload.around(layer, args, kwargs):
            return checkpoint(plain, *args, use_reentrant=False, **kwargs)

    return forward
