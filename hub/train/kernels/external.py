"""A model with kernels of its own: they come from an external library, so the hub adds none and calls that library's.

The hub's attention, compiled layers, fused output layer and activation checkpointing would patch the same forward passes.
They would undo the library's patches, or do the same work twice.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from hub.train.batch.collate import MicroBatch


@dataclass(frozen=True, kw_only=True)
class ExternalKernels:
    """What `fit` needs to know about such a library. `fit` also gets its loss, as a sum."""

    library: str
    """Name of the library, for plan.json."""

    attention: str
    """Name of its attention, for plan.json."""

    variable_length: bool = False
    """Whether the work of its attention on a packed row grows with each sample's own length, not with the row's."""

    inputs: Callable[[torch.nn.Module, MicroBatch], Mapping[str, object]]
    """Return the keywords of the model's forward for a micro-batch: they tell the library where each sample begins."""

    checkpoints: bool
    """Whether the library uses activation checkpointing in all layers."""
