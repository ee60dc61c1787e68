"""What a backend returns: a model, what training lowers, and how the model is saved. A task runs it.

Authors of algorithms import it from `hub.recipe`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hub.data.samples.roles import check_roles, check_single
from hub.errors import PluginError
from hub.parallel.reparametrization import Reparametrization
from hub.run import Outcome
from hub.train.kernels.external import ExternalKernels
from hub.train.losses.causal_lm import Loss, causal_lm_loss, token_log_probabilities
from hub.train.losses.objective import SINGLE, NextToken, Objective
from hub.train.setup.setup import Setup
from hub.train.step import Criterion

Save = Callable[[Any, Path, dict[str, torch.Tensor]], None]
"""Writes a model as a user loads it: `save(model, folder, weights)`. The model is of the class that the recipe has."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a backend's `build(setup)` returns. The same for every task: training, verifying, planning, evaluating."""

    model: torch.nn.Module
    """The model where `setup.load_model` put it, with `requires_grad` set on what trains."""

    save: Save
    """Writes the model as a user loads it. `weights` are whole tensors on the CPU by name: all of them, or those that train
    when the model carries adapters. Called on rank 0; for checkpoints in a thread while the model trains, so it must not change
    the model, nor read what training changes."""

    objective: Objective = field(default_factory=NextToken)
    """What training lowers, as a function of the log-probabilities of the loss tokens."""

    loss: Loss = causal_lm_loss
    """How a micro-batch's weighted negative log-likelihood is computed. Another one only where a library brings its own."""

    log_probabilities: Loss | None = None
    """With a `loss` of the library's own: the log-probability of each loss token (n,), for objectives that depend on them."""

    reparametrization: Reparametrization | None = None
    """How the model's weights follow from what trains. None: they are what trains."""

    kernels: ExternalKernels | None = None
    """What the model's library has put into it, so that the hub adds nothing of its own. None: the hub does."""

    finish: Callable[[Outcome], None] = lambda outcome: None
    """Called on all ranks after training, once the model is saved."""

    @property
    def criterion(self) -> Criterion:
        """The objective, and how the model's passes compute it.

        Raises:
            PluginError: the objective depends on log-probabilities, and the library's loss gives none.
        """
        own = self.loss is not causal_lm_loss
        if own and self.log_probabilities is None and self.objective.depends_on_values:
            raise PluginError(
                f"{type(self.objective).__name__} needs the log-probability of each loss token, and this backend's loss gives "
                "their sum only. Type algo.backend=native"
            )
        return Criterion(self.objective, self.loss, self.log_probabilities or token_log_probabilities)


def check_units(setup: Setup, objective: Objective) -> None:
    """Check that the data has what the objective trains on.

    Raises:
        DataError: a row has other samples than the objective needs.
    """
    units = [*setup.data.train, *setup.data.evaluation]
    if objective.roles == SINGLE:
        check_single(units, setup.algorithm)
    elif objective.roles is not None:
        check_roles(units, objective.roles, setup.algorithm)
