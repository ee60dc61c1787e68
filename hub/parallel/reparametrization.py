"""How a model's weights follow from what trains, for algorithms whose trained parameters are not the weights themselves.

The strategy calls these around an optimizer step, the loop around loading and saving. All ranks call alike.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Coordinates:
    """Here the weights are what trains, and nothing has to be done. An algorithm with coordinates of its own inherits this."""

    def placed(self) -> None:
        """The strategy has placed the model: weights lie where and as they are used."""

    def project_gradients(self) -> None:
        """Take out of the gradients what must not move: after they are summed over the ranks, before they are clipped."""

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer has stepped: bring the coordinates to what is allowed, and the weights to the coordinates."""

    def loaded(self) -> None:
        """The coordinates were read from a checkpoint: bring the weights to them."""

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Within it the model's weights are as they are to be stored; afterwards as training had them, to the bit."""
        yield
