"""Embeddings that learn although data is protected: only those of tokens that the data never has (`train_embeddings`).

An embedding is a linear layer whose input is one token: the input directions that the data leaves unused are the tokens that it
does not have. Of these, the rows of tokens in the new data may change. If the embeddings are tied to the output layer, a row
also computes a logit, and its change is restricted to directions that the data hardly uses there. With `protect_strength` it
is pulled toward the base weights in the directions that the data uses.
"""

from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

from hub.parallel.sharded_tensors import local_region, local_tensor
from hub_osft.subspace import pull_to_base_
from hub_osft.targets import Target


class FreeRows:
    """The rows of an embedding that may change, and the directions in which they may change."""

    base: torch.Tensor
    """The base weight, or this rank's shard of it. Set once the model is placed."""

    local_rows: torch.Tensor
    """The rows that are in it, counted from its start."""

    def __init__(
        self, module: torch.nn.Module, rows: torch.Tensor, free: torch.Tensor | None, penalty: torch.Tensor | None = None
    ) -> None:
        """Choose the rows.

        Args:
            module: the embedding. Its full weight (v, d) trains; fixed rows are restored after each step.
            rows: int64, token ids.
            free: Q (d, f), for a change Z Q^T. None: any change.
            penalty: (f,), penalty strength of each column of Z, times the learning rate. None: no penalty.
        """
        self.module, self.rows, self.free, self.penalty = module, rows, free, penalty

    def placed(self) -> None:
        """Store the base weight, or this rank's shard of it."""
        self.base = local_tensor(self.weight).clone()
        rows = self.rows.to(self.base.device) - local_region(self.weight).offsets[0]
        self.local_rows = rows[(rows >= 0) & (rows < len(self.base))]

    @property
    def weight(self) -> torch.nn.Parameter:
        """The embedding's weight. Looked up each time, since sharding replaces it."""
        return weight_of(self.module)

    def project_gradient_(self) -> None:
        """Remove forbidden directions and fixed rows from the gradient."""
        assert self.weight.grad is not None
        gradient = local_tensor(self.weight.grad)
        allowed = self._project(gradient[self.local_rows])
        gradient.zero_()[self.local_rows] = allowed

    def follow_(self, rates: Mapping[int, float]) -> None:
        """Restore fixed rows, and project the change of the free rows.

        Args:
            rates: learning rates by parameter id.
        """
        weight, rows = local_tensor(self.weight), self.local_rows
        allowed = self._project(weight[rows] - self.base[rows], rates[id(self.weight)])
        weight.copy_(self.base)
        weight[rows] += allowed

    def _project(self, change: torch.Tensor, rate: float = 0.0) -> torch.Tensor:
        if self.free is None:
            return change
        free = self.free.to(change)
        coordinates = change @ free
        if self.penalty is not None:
            pull_to_base_(coordinates, self.penalty, rate)
        return coordinates @ free.mT


def weight_of(module: torch.nn.Module) -> torch.nn.Parameter:
    """The weight of an embedding or output layer."""
    weight = module.weight
    assert isinstance(weight, torch.nn.Parameter)
    return weight


def is_tied(model: PreTrainedModel) -> bool:
    """Whether the output layer shares the weight of the embeddings."""
    head: torch.nn.Module | None = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def as_target(model: PreTrainedModel) -> Target:
    """The output layer as a matrix whose input directions are needed."""
    head: torch.nn.Module = model.get_output_embeddings()
    name = next(name for name, module in model.named_modules() if module is head)
    return Target(name, name, "weight", tuple(weight_of(head).shape), left=False, conv1d=False, in_full=True)
