"""A model whose library has put fast ways of its own into it: the hub then puts in none, and asks the library's way.

Attention, compiled layers, the fused output layer and recomputed activations of this folder would work on the same
forward passes as the library's, and undo or double them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hub.train.batch.collate import MicroBatch


@dataclass(frozen=True, kw_only=True)
class OwnKernels:
    """What `fit` is told about such a model. The loss is told to `fit` too: the library's own, as a sum."""

    library: str
    """Its name, for plan.json."""

    attention: str
    """Name of its attention, for plan.json."""

    variable_length: bool = False
    """Whether the work of its attention on a packed row grows with each sample's own length, not with the row's."""

    inputs: Callable[[Any, MicroBatch], dict[str, Any]]
    """The keywords of the model's forward for a micro-batch: how the library is told where each sample begins."""

    recomputes: bool
    """Whether it recomputes the activations of all layers in the backward pass."""
