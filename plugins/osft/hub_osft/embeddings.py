"""Embeddings that learn beside data to protect: only of tokens that the data never has (`train_embeddings` with activations).

An embedding is a linear layer whose input is one token: the input directions that the data leaves unused are the tokens that it
does not have. Of these the rows of tokens that the new data has may change. Where the embeddings are the output layer too, a
row is also what a logit is read with, and its change keeps to the directions that the data hardly uses there; with
`protect_strength` it is drawn back in those that it uses.
"""

from collections.abc import Mapping
from typing import Any

import torch

from hub.parallel.sharded_tensors import local, place_of
from hub_osft.subspace import draw_back_
from hub_osft.targets import Target


class FreeRows:
    """The rows of an embedding that may change, and the directions that they may change in."""

    def __init__(self, module: Any, rows: torch.Tensor, free: torch.Tensor | None, pull: torch.Tensor | None = None) -> None:
        """Choose the rows.

        Args:
            module: the embedding. Its weight (v, d) trains as a whole; what must stay is put back after each step.
            rows: int64, the tokens' numbers.
            free: Q (d, f), for a change Z Q^T. None: any change.
            pull: (f,), how strongly each column of Z is drawn back to zero, times the learning rate. None: not at all.
        """
        self.module, self.rows, self.free, self.pull = module, rows, free, pull

    def placed(self) -> None:
        """Note the first weight, or this rank's share of it."""
        weight = self.module.weight
        self.base = local(weight).detach().clone()
        here = self.rows.to(self.base.device) - place_of(weight).offsets[0]
        self.here = here[(here >= 0) & (here < len(self.base))]

    def project_gradient_(self) -> None:
        """Take out of the gradient what must not move."""
        gradient = local(self.module.weight.grad)
        allowed = self._within(gradient[self.here])
        gradient.zero_()[self.here] = allowed

    def follow_(self, rates: Mapping[int, float]) -> None:
        """Put back what must not have moved.

        Args:
            rates: learning rate by the parameter's id.
        """
        weight = local(self.module.weight)
        allowed = self._within(weight[self.here] - self.base[self.here], rates[id(self.module.weight)])
        weight.copy_(self.base)
        weight[self.here] += allowed

    def _within(self, change: torch.Tensor, rate: float = 0.0) -> torch.Tensor:
        if self.free is None:
            return change
        free = self.free.to(change)
        coordinates = change @ free
        if self.pull is not None:
            draw_back_(coordinates, self.pull, rate)
        return coordinates @ free.mT


def is_tied(model: Any) -> bool:
    """Whether the embeddings are the output layer too."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def as_target(model: Any) -> Target:
    """The output layer as a matrix whose input directions are asked for."""
    head = model.get_output_embeddings()
    name = next(name for name, module in model.named_modules() if module is head)
    return Target(name, name, "weight", tuple(head.weight.shape), left=False, conv1d=False)
