"""One optimizer step, and one evaluation: the same result for any number of micro-batches and processes.

A micro-batch's loss is the sum over its loss tokens divided by the count of loss tokens in the whole step, over all ranks
and micro-batches. Gradients are summed over micro-batches first and over ranks once, after every rank has said that it got
through: so a rank that runs out of memory leaves nobody waiting, and the step is repeated with more activation
checkpointing, or in smaller micro-batches.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from hub.data.prepare import Sample
from hub.errors import ModelError, NoMemoryError
from hub.parallel.group import sum_over_ranks, summed_over_ranks
from hub.parallel.session import Session
from hub.train.batch.collate import MicroBatch, num_loss_tokens
from hub.train.layout.layout import Layout, Shrink
from hub.train.losses.causal_lm import causal_lm_loss

NEEDED_BY_ONE = (
    "which the longest sample needs. Type algo.gradient_checkpointing=all algo.activation_offload=all, a smaller "
    "data.max_seq_len, or algo=qlora_sft"
)

NEEDED_BY_THE_OPTIMIZER = (
    "out of memory in the optimizer's step: there is no room for its state. Type algo.optimizer=adamw_8bit, algo=lora_sft, or "
    "launch.strategy=fsdp on several GPUs"
)

Loss = Callable[[Any, MicroBatch], torch.Tensor]


@dataclass(frozen=True)
class StepOutcome:
    """What a step was. Equal on all ranks."""

    loss: float
    """Mean cross entropy per loss token over the whole step."""

    grad_norm: float
    """Norm of the gradient before clipping."""

    layout: Layout
    """The layout that got through: smaller than the one asked for when memory ran out."""

    @property
    def finite(self) -> bool:
        """False when the loss or a gradient was NaN or infinite; the weights were left alone then."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def train_step(
    session: Session,
    model: Any,
    optimizer: torch.optim.Optimizer,
    samples: Sequence[Sample],
    layout: Layout,
    max_grad_norm: float | None,
    loss: Loss = causal_lm_loss,
    shrink: Shrink = Layout.halved,
    meanwhile: Callable[[Layout], None] = lambda layout: None,
) -> StepOutcome:
    """One optimizer step on the same samples on every rank. Weights stay as they are when a number is not finite.

    Args:
        session: device, arithmetic, processes.
        model: in training mode.
        optimizer: of the weights that train.
        samples: of the step.
        layout: how it is cut.
        max_grad_norm: bound of the gradient's norm. None: none.
        loss: of a micro-batch.
        shrink: makes a layout that takes less memory, if memory runs out.
        meanwhile: called once while the device is at work, with the layout that got through, for what the processor has to do
            anyway.

    Raises:
        ModelError: memory runs out even with the longest sample alone, or in the optimizer.
    """

    def attempt(smaller: Layout) -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        return accumulate_gradients(session, model, samples, smaller, loss)

    loss_sum, layout = retry_on_oom(attempt, samples, layout, session.strategy.recovers_memory, shrink)
    meanwhile(layout)
    try:
        found, norm = session.strategy.update(optimizer, max_grad_norm, loss_sum)
    except torch.OutOfMemoryError:
        raise ModelError(NEEDED_BY_THE_OPTIMIZER) from None  # half of the weights may have changed: not to be done again
    optimizer.zero_grad(set_to_none=True)
    return StepOutcome(found / count_targets(samples), norm, layout)


def accumulate_gradients(
    session: Session, model: Any, samples: Sequence[Sample], layout: Layout, loss: Loss = causal_lm_loss
) -> torch.Tensor:
    """Leave this rank's share of the gradient of the step's mean loss per loss token in the weights.

    Returns:
        This rank's sum of losses: a scalar on the device, float64, not waited for. The gradients of all ranks are still to
        be summed.
    """
    num_targets = count_targets(samples)
    total = torch.zeros((), dtype=torch.float64, device=session.device)
    for batch in layout.micro_batches(samples, session.group.rank, session.group.world):
        with session.autocast():
            loss_sum = loss(model, batch.to(session.device))
        session.strategy.backward(loss_sum / num_targets)
        total += loss_sum.detach().double()
    return total


@torch.no_grad()
def evaluate(
    session: Session, model: Any, samples: Sequence[Sample], layout: Layout, loss: Loss = causal_lm_loss
) -> tuple[float, Layout]:
    """Mean loss per loss token over all samples, in evaluation mode. Equal on all ranks, and for any layout.

    Returns:
        The loss, and the layout that got through.
    """
    group, chunk = session.group, 64 * session.group.world

    def attempt(smaller: Layout) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64, device=session.device)
        for start in range(0, len(samples), chunk):
            for batch in smaller.micro_batches(samples[start : start + chunk], group.rank, group.world):
                with session.autocast():
                    total += loss(model, batch.to(session.device)).double()
        return total

    model.eval()
    try:
        loss_sum, layout = retry_on_oom(attempt, samples, layout, session.strategy.recovers_memory)
    finally:
        model.train()
    return float(loss_sum) / count_targets(samples), layout


def retry_on_oom(
    attempt: Callable[[Layout], torch.Tensor],
    samples: Sequence[Sample],
    layout: Layout,
    recovers: bool = True,
    shrink: Shrink = Layout.halved,
) -> tuple[torch.Tensor, Layout]:
    """Run something that may run out of memory, and retry it with a smaller layout until it fits on all ranks.

    Args:
        attempt: does it on this rank without talking to the others; can be repeated. Returns a scalar on its device.
        samples: what it works on.
        layout: the layout to begin with.
        recovers: whether a rank may leave a pass half done. Not when the ranks exchange shares of layers during it.
        shrink: makes a layout that takes less memory, given the tokens of the longest sample. None if there is none.

    Returns:
        The sum of the ranks' scalars, and the layout that fit. What the device still has to do is not waited for.

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


def count_targets(samples: Sequence[Sample]) -> int:
    """Loss tokens of a step, at least 1."""
    return max(1, sum(num_loss_tokens(sample) for sample in samples))
