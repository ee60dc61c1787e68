"""Objectives: the value that a training step lowers, as a function of the log-probabilities of its loss tokens.

A step draws N units. A unit (a conversation, a preference pair, a group of rollouts) has one or more samples, which may be in
different micro-batches and on different ranks. For a loss L(logp) / divisor the gradient in the model's weights is that of the
weighted negative log-likelihood sum_t w_t * (-logp_t) / divisor with the constants w_t = -dL/dlogp_t. So one kernel for
weighted next-token loss serves every objective, in every layout.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from hub.data.samples.sample import Sample, Unit
from hub.errors import PluginError
from hub.plugins.offers import SINGLE
from hub.train.batch.collate import num_loss_tokens

UnitValues = Sequence[torch.Tensor]
"""Log-probabilities of a unit's loss tokens: one tensor (n,) in nats for each of its samples, in order."""


class Objective(ABC):
    """The value that training lowers. Subclass it for your own loss, and pass an instance to the recipe."""

    depends_on_values = True
    """Whether the weights of the loss tokens depend on their log-probabilities. If so, each step starts with a forward pass
    without gradient over all its samples. Dropout draws the same masks in both passes. False: `loss` must be linear in the
    log-probabilities, such as cross entropy with a weight for each token."""

    @property
    def has_unit_weights(self) -> bool:
        """Whether all weights are 1, so that nothing has to be computed for them. A subclass with its own `loss` has others."""
        return type(self).loss is NextToken.loss and not self.depends_on_values

    roles: tuple[str, ...] | None = SINGLE
    """The roles that the samples of each unit must have, in order, for example `("chosen", "rejected")`. None: any."""

    @abstractmethod
    def divisor(self, units: Sequence[Sequence[Sample]]) -> float:
        """Return the divisor of the summed loss, counted over all units of the step on all ranks. Above 0.

        Args:
            units: the samples of each unit.
        """

    @abstractmethod
    def loss(self, units: Sequence[Sequence[Sample]], values: Sequence[UnitValues]) -> torch.Tensor:
        """Compute the sum of the units' losses, before the division. A scalar, differentiable in `values`.

        Args:
            units: the samples of each unit.
            values: the log-probabilities, float64, shaped as `units`.
        """

    def prepare(self, passes: "Passes") -> None:  # noqa: B027 - most need nothing
        """Compute what the objective needs of the model as training begins. Called once on all ranks, before the first step.

        A resumed run calls it too, before the weights of its checkpoint are loaded.

        Args:
            passes: of the model, on the units of the run.
        """

    def finish(self, passes: "Passes") -> None:  # noqa: B027
        """Check something once training has ended and the model is saved. Called on all ranks. What it raises ends the run.

        Args:
            passes: of the model as it is now.
        """

    def completed(self, units: Sequence[Unit]) -> Sequence[Unit]:
        """Add to the units of a step, or of the evaluation set, samples whose log-probabilities the loss needs beside theirs.

        Called on all ranks, which must get the same.

        Args:
            units: as they were drawn.
        """
        return units

    def figures(self, units: Sequence[Sequence[Sample]], values: Sequence[UnitValues], is_start: bool) -> Mapping[str, float]:
        """Compute what is logged beside the loss, of an objective that depends on values. On all ranks.

        Args:
            units: the samples of each unit.
            values: as of `loss`.
            is_start: whether the values are those of the model as training began.

        Returns:
            Name -> value: for metrics.jsonl, and with `eval_` before it for the evaluation set.
        """
        return {}


@dataclass(frozen=True)
class Passes:
    """Passes of the model that a run trains, for an objective that needs more than the steps give."""

    chunks: Callable[[], Iterator[tuple[Sequence[Unit], bool]]]
    """Yields the units that the run will see, as `completed` gives them: those of each step together, then those of the
    evaluation set. Each with whether it is a step. Not to be called for a stream."""

    log_probabilities: Callable[[Sequence[Unit], bool], torch.Tensor]
    """Function of units, and whether as in a step (else in evaluation mode): the log-probability of each loss token, sample
    after sample, (T,) float64 on the CPU, equal on all ranks. The passes are those of training, without gradient. All ranks
    call it."""

    layout: Any
    """How passes are split: a `hub.train.layout.layout.Layout`."""

    describes: Mapping[str, object]
    """What decides how the passes round: device, dtype, form of the rows. As JSON."""


class NextToken(Objective):
    """Cross entropy of the next token. Every loss token has weight 1, and the divisor is their number."""

    depends_on_values = False

    def divisor(self, units: Sequence[Sequence[Sample]]) -> float:
        return max(1, sum(num_loss_tokens(sample) for samples in units for sample in samples))

    def loss(self, units: Sequence[Sequence[Sample]], values: Sequence[UnitValues]) -> torch.Tensor:
        return -torch.cat([value for unit in values for value in unit]).sum()


def token_weights(
    objective: Objective, units: Sequence[Sequence[Sample]], log_probabilities: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the loss of a step and the weight of each of its loss tokens.

    Args:
        objective: the objective.
        units: the samples of each unit.
        log_probabilities: (T,) log-probabilities of all loss tokens of the step, sample after sample.

    Returns:
        The summed loss (scalar, float64), and the weights (T,) float32: -dL/dlogp.

    Raises:
        PluginError: the objective returns no scalar, or one that does not depend on the values.
    """
    leaf = log_probabilities.detach().double().requires_grad_()
    with torch.enable_grad():
        loss = objective.loss(units, _by_unit(units, leaf))
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or not loss.requires_grad:
        found = f"{loss!r:.40}"
        if isinstance(loss, torch.Tensor):
            found = f"a tensor {tuple(loss.shape)}{'' if loss.requires_grad else ' without gradient'}"
        name = type(objective).__name__
        raise PluginError(f"{name}.loss must return a scalar that is differentiable in `values`, but returned {found}")
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach().reshape(()), -gradient.float()


def figures_of(
    objective: Objective, units: Sequence[Sequence[Sample]], log_probabilities: torch.Tensor | None, is_start: bool
) -> dict[str, float]:
    """Compute what an objective logs beside the loss.

    Args:
        objective: the objective.
        units: the samples of each unit.
        log_probabilities: (T,) of all loss tokens, sample after sample. None: the objective does not depend on them.
        is_start: whether they are those of the model as training began.
    """
    if log_probabilities is None:
        return {}
    return dict(objective.figures(units, _by_unit(units, log_probabilities.double()), is_start))


def constant_weights(objective: Objective, units: Sequence[Sequence[Sample]]) -> torch.Tensor | None:
    """The weight of each loss token of a step, for an objective whose weights do not depend on log-probabilities.

    Returns:
        (T,) float32. None: all are 1.

    Raises:
        PluginError: the loss is no weighted sum of the values.
    """
    if objective.has_unit_weights:
        return None
    num_tokens = sum(num_loss_tokens(sample) for samples in units for sample in samples)
    offset, weights = token_weights(objective, units, torch.zeros(num_tokens, dtype=torch.float64))
    if offset != 0:
        raise PluginError(
            f"{type(objective).__name__}.depends_on_values=False needs a loss that is a weighted sum of the values, but for "
            f"values of 0 it is {float(offset):g}. Write depends_on_values = True"
        )
    return weights


def _by_unit(units: Sequence[Sequence[Sample]], values: torch.Tensor) -> list[list[torch.Tensor]]:
    counts = [num_loss_tokens(sample) for samples in units for sample in samples]
    pieces = iter(values.split(counts))
    return [list(islice(pieces, len(samples))) for samples in units]
