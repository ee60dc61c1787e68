"""Computes a model's weights from what trains, for algorithms whose trained parameters are not the weights themselves.

The strategy calls these hooks around an optimizer step, the training loop around loading and saving. Every rank must call them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Reparametrization:
    """The identity: the weights are what trains. Algorithms that train other parameters inherit from this class."""

    def placed(self) -> None:
        """Called once the strategy has placed the model: devices and sharding of the weights are final."""

    def memory(self) -> list[tuple[str, int, str]]:
        """What it holds beside the model on each GPU once the model is placed, as (name, bytes, why). For plans."""
        return []

    def project_gradients(self) -> None:
        """Remove forbidden directions from the gradients. Called after they are reduced over ranks, before clipping."""

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Project the trained parameters after an optimizer step, then recompute the weights from them."""

    def loaded(self) -> None:
        """Recompute the weights after the trained parameters were read from a checkpoint."""

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Within this context the weights have the values to be saved; afterwards those of training, bit for bit."""
        yield
