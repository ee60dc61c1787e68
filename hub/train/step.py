"""One optimizer step, and one evaluation: the same result for any number of micro-batches and processes.

A micro-batch's loss is the weighted sum of its tokens' negative log-likelihoods over the objective's divisor, which counts the
whole step, over all ranks and micro-batches. Gradients are summed over micro-batches first and over ranks once, after every
rank has reported that its passes fit into memory. So a rank that runs out of memory leaves no other waiting, and the step is
retried with more checkpointed layers, or in smaller micro-batches.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import NamedTuple

import torch

from hub.data.samples.sample import Sample, Unit, samples_of
from hub.errors import ModelError, NoMemoryError
from hub.parallel.group import sum_over_ranks, summed_over_ranks
from hub.parallel.session import Session
from hub.plugins.known import ADAPTERS, QUANTIZED_ADAPTERS
from hub.system.memory import Shortage, free_unused, is_out_of_memory, shortage_of
from hub.train.batch.collate import MicroBatch, num_loss_tokens
from hub.train.kernels.balancing import COUNTING, TRAINING, Balance, told
from hub.train.layout.layout import Layout, Shrink
from hub.train.losses.causal_lm import Loss, causal_lm_loss, token_log_probabilities
from hub.train.losses.objective import NextToken, Objective, constant_weights, token_weights

NO_SMALLER_LAYOUT = (
    "which the longest sample needs. Type algo.gradient_checkpointing=all algo.activation_offload=all, a smaller "
    f"data.max_seq_len, or algo={QUANTIZED_ADAPTERS}"
)

OPTIMIZER_OUT_OF_MEMORY = "out of memory in the optimizer's step: there is no room for its state"
INSTEAD_OF_MOMENTS = (
    f"Type algo.optimizer=adamw_8bit, algo={ADAPTERS}, or launch.strategy=fsdp on several GPUs. The verb `plan` with the same "
    "options tries what else fits"
)

EVALUATION_CHUNK = 64
"""Number of units on each rank that an evaluation splits into micro-batches at once."""


@dataclass(frozen=True)
class Criterion:
    """An objective, and how the model's passes compute it."""

    objective: Objective = field(default_factory=NextToken)
    loss: Loss = causal_lm_loss
    log_probabilities: Loss = token_log_probabilities
    """Function of a model and a micro-batch: the log-probability of each of its loss tokens, (n,), without gradient."""

    balance: Balance | None = None
    """The load-balancing loss of experts, which is added to the objective's mean. None: there is none."""

    @property
    def balance_figures(self) -> dict[str, float]:
        """The load-balancing loss of the last step, without its coefficient, for the log."""
        return {} if self.balance is None else {"load_balancing_loss": self.balance.loss}

    @property
    def needs_values(self) -> bool:
        return self.objective.depends_on_values


@dataclass(frozen=True)
class StepOutcome:
    """The outcome of one step. Equal on all ranks."""

    loss: float
    """The objective's mean over the whole step; cross entropy per loss token in nats for next-token training."""

    grad_norm: float
    """Norm of the gradient before clipping."""

    layout: Layout
    """The layout that fit. Smaller than the one asked for if memory ran out."""

    values: torch.Tensor | None = None
    """The log-probabilities of the step's loss tokens before its update, (T,). None: the objective does not depend on them."""

    @property
    def finite(self) -> bool:
        """Whether loss and gradients are finite. If not, no weight changed."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def train_step(
    session: Session,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    units: Sequence[Unit],
    layout: Layout,
    max_grad_norm: float | None,
    criterion: Criterion,
    shrink: Shrink = Layout.halved,
    on_cpu_during_step: Callable[[Layout], None] = lambda layout: None,
) -> StepOutcome:
    """Run one optimizer step on the same units on every rank. Weights stay as they are if a number is not finite.

    Args:
        session: device, arithmetic, processes.
        model: in training mode.
        optimizer: of the weights that train.
        units: units of the step.
        layout: how the step is split.
        max_grad_norm: bound of the gradient's norm. None: no clipping.
        criterion: the objective.
        shrink: makes a layout that takes less memory, when memory runs out.
        on_cpu_during_step: work for the CPU, called once with the layout that fit, while the device is busy.

    Raises:
        ModelError: memory runs out even with the longest sample alone, or in the optimizer.
    """
    values = None
    if criterion.needs_values or criterion.balance is not None:
        found, layout = log_probabilities(session, model, units, layout, criterion, shrink)
        values = found if criterion.needs_values else None
    step_loss, weights = weigh(criterion.objective, units, values)

    def attempt(smaller: Layout) -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        return accumulate_gradients(session, model, units, smaller, criterion, weights)

    loss_sum, layout = retry_on_oom(attempt, samples_of(units), layout, session.strategy.recovers_memory, shrink)
    on_cpu_during_step(layout)
    try:
        total, norm = session.strategy.update(optimizer, max_grad_norm, loss_sum if step_loss is None else step_loss)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        # Half of the weights may have changed, so no retry.
        raise ModelError(f"{OPTIMIZER_OUT_OF_MEMORY} ({shortage_of(error)}). {INSTEAD_OF_MOMENTS}") from None
    optimizer.zero_grad(set_to_none=True)
    return StepOutcome(total / criterion.objective.divisor(members(units)), norm, layout, values)


class Evaluated(NamedTuple):
    """The outcome of an evaluation. Equal on all ranks."""

    loss: float
    """The objective's mean over all units."""

    layout: Layout
    """The layout that fit."""

    values: torch.Tensor | None
    """As `StepOutcome.values`."""


def accumulate_gradients(
    session: Session,
    model: torch.nn.Module,
    units: Sequence[Unit],
    layout: Layout,
    criterion: Criterion,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Add this rank's part of the gradient of the step's mean loss to the weights' `.grad`. The caller reduces over ranks.

    Args:
        session: device, arithmetic, processes.
        model: in training mode.
        units: units of the step.
        layout: how the step is split.
        criterion: the objective.
        weights: (T,) weights of all loss tokens of the step, see `weigh`. None: all are 1.

    Returns:
        This rank's weighted sum of losses: a scalar on the device, float64. It may still be computing.
    """
    divisor = criterion.objective.divisor(members(units))
    samples = samples_of(units)
    total = torch.zeros((), dtype=torch.float64, device=session.device)
    for batch in layout.micro_batches(samples, session.group.rank, session.group.world):
        weighted = _weighted(batch, weights, samples).to(session.device)
        with told(criterion.balance, weighted, TRAINING):  # layers that are recomputed must find it too
            with session.autocast():
                loss_sum = criterion.loss(model, weighted)
            session.strategy.backward(loss_sum / divisor)
        total += loss_sum.detach().double()
        del loss_sum  # until the next pass ends, its graph would hold the first layer's input and the gradient of that
    return total


def log_probabilities(
    session: Session,
    model: torch.nn.Module,
    units: Sequence[Unit],
    layout: Layout,
    criterion: Criterion,
    shrink: Shrink = Layout.halved,
) -> tuple[torch.Tensor, Layout]:
    """Compute the log-probability of each loss token of a step, sample after sample, without gradient. Equal on all ranks.

    The random generators' states are restored afterwards, so dropout draws the same masks in the pass with gradient.

    Returns:
        (T,) float64 on the CPU, and the layout that fit.
    """
    samples = samples_of(units)
    num_tokens = sum(num_loss_tokens(sample) for sample in samples)
    devices = [session.device] if session.device.type == "cuda" else []
    balance = criterion.balance if model.training else None

    def attempt(smaller: Layout) -> torch.Tensor:
        values = torch.zeros(num_tokens, dtype=torch.float64, device=session.device)
        if balance is not None:
            balance.reset()
        with torch.random.fork_rng(devices):
            for batch in smaller.micro_batches(samples, session.group.rank, session.group.world):
                places, there = token_places(batch, samples), batch.to(session.device)
                with session.autocast(), told(balance, there, COUNTING):
                    values[places.to(session.device)] = criterion.log_probabilities(model, there).double()
        return values if balance is None else torch.cat([values, balance.tallies.double().flatten()])

    summed, layout = retry_on_oom(attempt, samples, layout, session.strategy.recovers_memory, shrink)
    if balance is not None:
        balance.settle(summed[num_tokens:].unflatten(0, (2, -1)))
    return summed[:num_tokens].cpu(), layout


def weigh(
    objective: Objective, units: Sequence[Unit], values: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Compute the summed loss of a step, and the weight of each of its loss tokens.

    Args:
        objective: what training lowers.
        units: units of the step.
        values: (T,) log-probabilities of the loss tokens. None: the objective does not depend on them.

    Returns:
        The loss, a scalar; None without values: the passes give it then. The weights (T,); None if all are 1.
    """
    if values is None:
        return None, constant_weights(objective, members(units))
    return token_weights(objective, members(units), values)


def token_places(batch: MicroBatch, samples: Sequence[Sample]) -> torch.Tensor:
    """Return the indices of a micro-batch's loss tokens among those of the step, sample after sample. (n,) int64."""
    ends = list(accumulate(num_loss_tokens(sample) for sample in samples))
    spans = [torch.arange(ends[i] - num_loss_tokens(samples[i]), ends[i]) for i in batch.samples]
    return torch.cat(spans) if spans else torch.zeros(0, dtype=torch.int64)


@torch.no_grad()
def evaluate(
    session: Session, model: torch.nn.Module, units: Sequence[Unit], layout: Layout, criterion: Criterion
) -> Evaluated:
    """Compute the objective's mean over all units, in evaluation mode. Equal on all ranks, and for any layout."""
    model.eval()
    values = None
    try:
        chunks = evaluation_chunks(units, session.group.world)
        if criterion.needs_values:
            values, layout = _values(session, model, chunks, layout, criterion)
            loss_sum, _ = token_weights(criterion.objective, members(units), values)
        else:
            loss_sum, layout = _sum_of_losses(session, model, chunks, layout, criterion)
    finally:
        model.train()
    return Evaluated(float(loss_sum) / criterion.objective.divisor(members(units)), layout, values)


def evaluation_chunks(units: Sequence[Unit], world: int) -> list[Sequence[Unit]]:
    """The units that an evaluation splits into micro-batches at once."""
    size = EVALUATION_CHUNK * world
    return [units[start : start + size] for start in range(0, len(units), size)]


def _values(
    session: Session, model: torch.nn.Module, chunks: Sequence[Sequence[Unit]], layout: Layout, criterion: Criterion
) -> tuple[torch.Tensor, Layout]:
    values = []
    for chunk in chunks:
        of_chunk, layout = log_probabilities(session, model, chunk, layout, criterion)
        values.append(of_chunk)
    return torch.cat(values), layout


def _sum_of_losses(
    session: Session, model: torch.nn.Module, chunks: Sequence[Sequence[Unit]], layout: Layout, criterion: Criterion
) -> tuple[torch.Tensor, Layout]:
    group, samples = session.group, [samples_of(chunk) for chunk in chunks]
    weights = [weigh(criterion.objective, chunk, None)[1] for chunk in chunks]

    def attempt(smaller: Layout) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64, device=session.device)
        for of_chunk, of_tokens in zip(samples, weights, strict=True):
            for batch in smaller.micro_batches(of_chunk, group.rank, group.world):
                weighted = _weighted(batch, of_tokens, of_chunk)
                with session.autocast():
                    total += criterion.loss(model, weighted.to(session.device)).double()
        return total

    return retry_on_oom(attempt, [sample for chunk in samples for sample in chunk], layout, session.strategy.recovers_memory)


def _weighted(batch: MicroBatch, weights: torch.Tensor | None, samples: Sequence[Sample]) -> MicroBatch:
    """Return the micro-batch with its part of the weights of all loss tokens of `samples`."""
    return batch if weights is None else replace(batch, weights=weights[token_places(batch, samples)])


def members(units: Sequence[Unit]) -> list[tuple[Sample, ...]]:
    """Return the samples of each unit."""
    return [unit.samples for unit in units]


def retry_on_oom(
    attempt: Callable[[Layout], torch.Tensor],
    samples: Sequence[Sample],
    layout: Layout,
    recovers: bool = True,
    shrink: Shrink = Layout.halved,
) -> tuple[torch.Tensor, Layout]:
    """Run something that may run out of memory, and retry it with a smaller layout until it fits on all ranks.

    Args:
        attempt: computes this rank's tensor, of the same shape on all ranks. Without communication, and repeatable.
        samples: the samples that it computes on.
        layout: the layout to begin with.
        recovers: whether a rank may stop in the middle of a pass. Not if ranks all-gather layers during it.
        shrink: makes a layout that takes less memory, given the tokens of the longest sample. None if there is none.

    Returns:
        The sum of the ranks' tensors, and the layout that fit. The device may still be computing the sum.

    Raises:
        ModelError: memory runs out even with the longest sample alone.
        NoMemoryError: it runs out where this rank can't stop without leaving the others waiting.
    """
    while True:
        mine: torch.Tensor | None = None
        shortage = Shortage()
        try:
            mine = attempt(layout)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            shortage = shortage_of(error)
        out = f"out of memory with micro-batches of {layout.max_tokens} tokens"
        if mine is None and not recovers:
            smaller = layout.halved(max(len(sample) for sample in samples))
            if smaller is None:
                raise ModelError(f"{out} ({shortage}), {NO_SMALLER_LAYOUT}")
            raise NoMemoryError(
                f"{out} ({shortage}). Type algo.max_tokens_per_gpu={smaller.max_tokens} resume=latest",
                smaller.max_tokens,
            )
        # The exception references the tensors of the failed pass. Here it is freed.
        (num_out,) = sum_over_ranks(float(mine is None))
        if mine is not None and not num_out:
            return summed_over_ranks(mine), layout
        free_unused()
        smaller = shrink(layout, max(len(sample) for sample in samples))
        if smaller is None:
            raise ModelError(f"{out} ({shortage}), {NO_SMALLER_LAYOUT}")
        layout = smaller
