"""One optimizer step, and one evaluation: the same result for any number of micro-batches and processes.

A micro-batch's loss is the weighted sum of its tokens' negative log-likelihoods over the objective's divisor, which counts the
whole step, over all ranks and micro-batches. Gradients are summed over micro-batches first and over ranks once, after every
rank has reported that its passes fit into memory. So a rank that runs out of memory leaves no other waiting, and the step is
done again with more checkpointed layers, or in smaller micro-batches.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import torch

from hub.data.samples.sample import Sample, Unit, samples_of
from hub.errors import ModelError, NoMemoryError
from hub.parallel.group import sum_over_ranks, summed_over_ranks
from hub.parallel.session import Session
from hub.train.batch.collate import MicroBatch, num_loss_tokens
from hub.train.layout.layout import Layout, Shrink
from hub.train.losses.causal_lm import Loss, causal_lm_loss, token_log_probabilities
from hub.train.losses.objective import NextToken, Objective, constant_weights, token_weights

NEEDED_BY_ONE = (
    "which the longest sample needs. Type algo.gradient_checkpointing=all algo.activation_offload=all, a smaller "
    "data.max_seq_len, or algo=qlora_sft"
)

NEEDED_BY_THE_OPTIMIZER = (
    "out of memory in the optimizer's step: there is no room for its state. Type algo.optimizer=adamw_8bit, algo=lora_sft, or "
    "launch.strategy=fsdp on several GPUs"
)

EVALUATION_CHUNK = 64
"""Units of each rank that an evaluation takes at a time."""


@dataclass(frozen=True)
class Criterion:
    """What is lowered, and how the model's passes compute it."""

    objective: Objective = field(default_factory=NextToken)
    loss: Loss = causal_lm_loss
    log_probabilities: Loss = token_log_probabilities
    """A model and a micro-batch to the log-probability of each of its loss tokens, (n,), without gradient."""

    @property
    def needs_values(self) -> bool:
        return self.objective.depends_on_values


@dataclass(frozen=True)
class StepOutcome:
    """What a step was. Equal on all ranks."""

    loss: float
    """The objective's mean over the whole step; cross entropy per loss token in nats for next-token training."""

    grad_norm: float
    """Norm of the gradient before clipping."""

    layout: Layout
    """The layout that fit: smaller than the one asked for when memory ran out."""

    @property
    def finite(self) -> bool:
        """False when the loss or a gradient was NaN or infinite; the weights were left alone then."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def train_step(
    session: Session,
    model: Any,
    optimizer: torch.optim.Optimizer,
    units: Sequence[Unit],
    layout: Layout,
    max_grad_norm: float | None,
    criterion: Criterion,
    shrink: Shrink = Layout.halved,
    on_cpu_during_step: Callable[[Layout], None] = lambda layout: None,
) -> StepOutcome:
    """One optimizer step on the same units on every rank. Weights stay as they are when a number is not finite.

    Args:
        session: device, arithmetic, processes.
        model: in training mode.
        optimizer: of the weights that train.
        units: of the step.
        layout: how it is split.
        max_grad_norm: bound of the gradient's norm. None: none.
        criterion: what is lowered.
        shrink: makes a layout that takes less memory, when memory runs out.
        on_cpu_during_step: called once while the device works, with the layout that fit, for what the CPU has to do anyway.

    Raises:
        ModelError: memory runs out even with the longest sample alone, or in the optimizer.
    """
    values = None
    if criterion.needs_values:
        values, layout = log_probabilities(session, model, units, layout, criterion, shrink)
    step_loss, weights = weigh(criterion.objective, units, values)

    def attempt(smaller: Layout) -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        return accumulate_gradients(session, model, units, smaller, criterion, weights)

    loss_sum, layout = retry_on_oom(attempt, samples_of(units), layout, session.strategy.recovers_memory, shrink)
    on_cpu_during_step(layout)
    try:
        found, norm = session.strategy.update(optimizer, max_grad_norm, loss_sum if step_loss is None else step_loss)
    except torch.OutOfMemoryError:
        raise ModelError(NEEDED_BY_THE_OPTIMIZER) from None  # half of the weights may have changed: not to be done again
    optimizer.zero_grad(set_to_none=True)
    return StepOutcome(found / criterion.objective.divisor(members(units)), norm, layout)


def accumulate_gradients(
    session: Session,
    model: Any,
    units: Sequence[Unit],
    layout: Layout,
    criterion: Criterion,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Leave this rank's part of the gradient of the step's mean loss in the weights.

    Args:
        session: device, arithmetic, processes.
        model: in training mode.
        units: of the step.
        layout: how it is split.
        criterion: what is lowered.
        weights: (T,) of all loss tokens of the step, see `weigh`. None: all are 1.

    Returns:
        This rank's weighted sum of losses: a scalar on the device, float64, not waited for. The gradients of all ranks are
        still to be summed.
    """
    divisor = criterion.objective.divisor(members(units))
    samples = samples_of(units)
    total = torch.zeros((), dtype=torch.float64, device=session.device)
    for batch in layout.micro_batches(samples, session.group.rank, session.group.world):
        if weights is not None:
            batch = replace(batch, weights=weights[token_places(batch, samples)])
        with session.autocast():
            loss_sum = criterion.loss(model, batch.to(session.device))
        session.strategy.backward(loss_sum / divisor)
        total += loss_sum.detach().double()
    return total


def log_probabilities(
    session: Session,
    model: Any,
    units: Sequence[Unit],
    layout: Layout,
    criterion: Criterion,
    shrink: Shrink = Layout.halved,
) -> tuple[torch.Tensor, Layout]:
    """The log-probability of each loss token of a step, sample after sample, without gradient. Equal on all ranks.

    The random generators are as before afterwards: dropout in the pass with gradient draws the same masks.

    Returns:
        (T,) float64 on the CPU, and the layout that fit.
    """
    samples = samples_of(units)
    num_tokens = sum(num_loss_tokens(sample) for sample in samples)
    devices = [session.device] if session.device.type == "cuda" else []

    def attempt(smaller: Layout) -> torch.Tensor:
        found = torch.zeros(num_tokens, dtype=torch.float64, device=session.device)
        with torch.random.fork_rng(devices):
            for batch in smaller.micro_batches(samples, session.group.rank, session.group.world):
                places = token_places(batch, samples)
                with session.autocast():
                    found[places.to(session.device)] = criterion.log_probabilities(model, batch.to(session.device)).double()
        return found

    found, layout = retry_on_oom(attempt, samples, layout, session.strategy.recovers_memory, shrink)
    return found.cpu(), layout


def weigh(
    objective: Objective, units: Sequence[Unit], values: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The summed loss of a step, and the weight of each of its loss tokens.

    Args:
        objective: what is lowered.
        units: of the step.
        values: (T,) log-probabilities of the loss tokens. None: the objective does not depend on them.

    Returns:
        Scalar and (T,). The scalar is None when the weights are constant: the passes give the sum then. The weights are None
        when all are 1.
    """
    if values is None:
        return None, constant_weights(objective, members(units))
    return token_weights(objective, members(units), values)


def token_places(batch: MicroBatch, samples: Sequence[Sample]) -> torch.Tensor:
    """Where a micro-batch's loss tokens stand among all of the step, sample after sample. (n,) int64."""
    ends = list(accumulate(num_loss_tokens(sample) for sample in samples))
    spans = [torch.arange(ends[i] - num_loss_tokens(samples[i]), ends[i]) for i in batch.samples]
    return torch.cat(spans) if spans else torch.zeros(0, dtype=torch.int64)


@torch.no_grad()
def evaluate(session: Session, model: Any, units: Sequence[Unit], layout: Layout, criterion: Criterion) -> tuple[float, Layout]:
    """The objective's mean over all units, in evaluation mode. Equal on all ranks, and for any layout.

    Returns:
        The loss, and the layout that fit.
    """
    model.eval()
    try:
        if criterion.needs_values:
            values, layout = log_probabilities(session, model, units, layout, criterion)
            loss_sum, _ = weigh(criterion.objective, units, values)
        else:
            _, weights = weigh(criterion.objective, units, None)
            loss_sum, layout = _sum_of_losses(session, model, samples_of(units), layout, criterion.loss, weights)
    finally:
        model.train()
    assert loss_sum is not None
    return float(loss_sum) / criterion.objective.divisor(members(units)), layout


def _sum_of_losses(
    session: Session, model: Any, samples: Sequence[Sample], layout: Layout, loss: Loss, weights: torch.Tensor | None
) -> tuple[torch.Tensor, Layout]:
    group, chunk = session.group, EVALUATION_CHUNK * session.group.world

    def attempt(smaller: Layout) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64, device=session.device)
        num_before = 0
        for start in range(0, len(samples), chunk):
            part = samples[start : start + chunk]
            for batch in smaller.micro_batches(part, group.rank, group.world):
                if weights is not None:
                    batch = replace(batch, weights=weights[num_before + token_places(batch, part)])
                with session.autocast():
                    total += loss(model, batch.to(session.device)).double()
            num_before += sum(map(num_loss_tokens, part))
        return total

    return retry_on_oom(attempt, samples, layout, session.strategy.recovers_memory)


def members(units: Sequence[Unit]) -> list[tuple[Sample, ...]]:
    """The samples of each unit."""
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
        attempt: does it on this rank without talking to the others; can be repeated. Returns a tensor on its device, of
            the same shape on all ranks.
        samples: what it works on.
        layout: the layout to begin with.
        recovers: whether a rank may leave a pass half done. Not when the ranks all-gather layers during it.
        shrink: makes a layout that takes less memory, given the tokens of the longest sample. None if there is none.

    Returns:
        The sum of the ranks' tensors, and the layout that fit. What the device still has to do is not waited for.

    Raises:
        ModelError: memory runs out even with the longest sample alone.
        NoMemoryError: it runs out, and this rank can't leave the pass without the others waiting for it.
    """
    while True:
        mine: torch.Tensor | None = None
        with suppress(torch.OutOfMemoryError):
            mine = attempt(layout)
        if mine is None and not recovers:
            smaller = layout.halved(max(len(sample) for sample in samples))
            if smaller is None:
                raise ModelError(f"out of memory with micro-batches of {layout.max_tokens} tokens, {NEEDED_BY_ONE}")
            raise NoMemoryError(
                f"out of memory with micro-batches of {layout.max_tokens} tokens. "
                f"Type algo.max_tokens_per_gpu={smaller.max_tokens} resume=latest",
                smaller.max_tokens,
            )
        # The exception, which holds on to the tensors of the failed pass, is gone here.
        (num_out,) = sum_over_ranks(float(mine is None))
        if mine is not None and not num_out:
            return summed_over_ranks(mine), layout
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        smaller = shrink(layout, max(len(sample) for sample in samples))
        if smaller is None:
            raise ModelError(f"out of memory with micro-batches of {layout.max_tokens} tokens, {NEEDED_BY_ONE}")
        layout = smaller
