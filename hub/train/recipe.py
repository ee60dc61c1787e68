"""Recipe: what a backend builds. The model, its objective, and how it is saved. A task runs it.

Authors of algorithms import it from `hub.recipe`.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from hub.data.samples.roles import check_roles, singles
from hub.errors import PluginError
from hub.parallel.reparametrization import Reparametrization
from hub.plugins.offers import SINGLE
from hub.result import Outcome
from hub.train.kernels.external import ExternalKernels
from hub.train.losses.causal_lm import Loss, causal_lm_loss, token_log_probabilities
from hub.train.losses.objective import NextToken, Objective
from hub.train.setup.setup import Setup
from hub.train.step import Criterion

Save = Callable[[Any, Path, dict[str, torch.Tensor]], None]
"""Writes a model as a user loads it: `save(model, folder, weights)`. The model is of the class that the recipe has."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The result of a backend's `build(setup)`. Every task runs on it, such as `train` and `verify`."""

    model: torch.nn.Module
    """The model on the device where `setup.load_model` put it, with `requires_grad` set on what trains."""

    save: Save
    """Writes the model as a user loads it. `weights` has unsharded tensors on the CPU by name: all of them, or with adapters
    only those that train. Called on rank 0. For checkpoints it is called in a thread while the model trains, so it must not
    change the model, nor read what training changes. It is tried before training, of a large model first with tensors on the
    meta device (`checkpoints/rehearsal.py`), and what it raises ends the run."""

    objective: Objective = field(default_factory=NextToken)
    """The value that training lowers, as a function of the log-probabilities of the loss tokens."""

    loss: Loss = causal_lm_loss
    """Computes a micro-batch's weighted negative log-likelihood. Set it only if the model's library brings its own loss."""

    log_probabilities: Loss | None = None
    """Only with a `loss` of the library: computes the log-probability of each loss token, (n,). Preference and reinforcement
    learning objectives need it."""

    reparametrization: Reparametrization | None = None
    """Computes the model's weights from the trained parameters. None: the weights themselves train."""

    kernels: ExternalKernels | None = None
    """Kernels that the model's library has installed. Then the hub adds none. None: the hub adds its own."""

    finish: Callable[[Outcome], None] = lambda outcome: None
    """Called on all ranks after training, when the model is saved."""

    @property
    def criterion(self) -> Criterion:
        """Return the objective, and how the model's passes compute it.

        Raises:
            PluginError: the objective depends on log-probabilities, and the library's loss does not give them.
        """
        own = self.loss is not causal_lm_loss
        if own and self.log_probabilities is None and self.objective.depends_on_values:
            raise PluginError(
                f"{type(self.objective).__name__} needs the log-probability of each loss token, and this backend's loss gives "
                "their sum only. Type algo.backend=native"
            )
        return Criterion(self.objective, self.loss, self.log_probabilities or token_log_probabilities)


def check_units(setup: Setup, objective: Objective) -> None:
    """Check that the data has the samples that the objective needs.

    Raises:
        DataError: a row has other samples than the objective needs.
    """
    units = chain(setup.data.train, setup.data.evaluation)
    if objective.roles == SINGLE:
        deque(singles(units, setup.algorithm), maxlen=0)
    elif objective.roles is not None:
        check_roles(units, objective.roles, setup.algorithm)
