"""The load-balancing loss of a mixture of experts over a whole step, whatever its micro-batches are.

    E sum_e (C_e / N) (P_e / N)        E: experts. N: tokens of the step, times layers. C_e: how often expert e was chosen.
                                       P_e: the sum of the router's probabilities for it

(Fedus et al., arXiv 2101.03961, equations 4 to 6, as `load_balancing_loss_func` of transformers has it.) C has no gradient. So
a pass without gradient counts it for the step, and then the loss is linear in the probabilities: each micro-batch adds its
own part. The part enters where a router's scores leave it, so that nothing has to be carried out of a layer that is compiled or
recomputed.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from hub.models.patches import Edits, Patch
from hub.models.structure import base_of
from hub.train.batch.collate import MicroBatch

COUNTING, TRAINING = "counting", "training"


class Balance:
    """What routers have done in a step, and what each expert's probability costs.

    Args:
        coefficient: of the loss.
        num_experts: of a layer.
        top_k: experts of a token.
        device: of the model.
    """

    def __init__(self, coefficient: float, num_experts: int, top_k: int, device: torch.device) -> None:
        self.coefficient, self.num_experts, self.top_k = coefficient, num_experts, top_k
        self.mode = ""
        self.mask: torch.Tensor | None = None
        """(R * T,) 1 for tokens, 0 for padding. None: there is none."""

        self.tallies = torch.zeros(2, num_experts, device=device)
        """How often each expert was chosen, and the sums of its probabilities."""

        self.prices = torch.zeros(num_experts, device=device)
        """(E,) what the loss grows by with an expert's probability for one token in one layer."""

        self.loss = 0.0
        """Of the last step that was counted, without the coefficient."""

    def reset(self) -> None:
        """Begin to count a step."""
        self.tallies.zero_()

    def settle(self, tallies: torch.Tensor) -> None:
        """Set the prices of a step.

        Args:
            tallies: (2, E) of all ranks.
        """
        chosen, probabilities = tallies.double()
        number = chosen.sum() / self.top_k
        self.prices.copy_(self.coefficient * self.num_experts * chosen / number.square().clamp(min=1))
        self.loss = float(self.num_experts * (chosen * probabilities).sum() / number.square().clamp(min=1))

    @contextmanager
    def of(self, batch: MicroBatch, mode: str) -> Iterator[None]:
        """Within it routers count, or their probabilities cost. A micro-batch without samples counts for nothing.

        Args:
            batch: that runs, on the model's device.
            mode: `COUNTING` or `TRAINING`.
        """
        self.mask = None if batch.attention_mask is None else batch.attention_mask.reshape(-1).float()
        self.mode = mode if batch.samples else ""
        try:
            yield
        finally:
            self.mode, self.mask = "", None

    def through(self, outputs: Any, index: int) -> Any:
        """Take note of what a router gives.

        Args:
            outputs: of the router.
            index: of its logits among them.
        """
        if not self.mode:
            return outputs
        several = list(outputs) if isinstance(outputs, tuple) else [outputs]
        probabilities = several[index].flatten(0, -2).softmax(-1)
        kept = probabilities.float() if self.mask is None else probabilities.float() * self.mask[:, None]
        if self.mode == COUNTING:
            chosen = torch.zeros_like(kept).scatter_(1, probabilities.topk(self.top_k, dim=-1).indices, 1.0)
            chosen = chosen if self.mask is None else chosen * self.mask[:, None]
            self.tallies.add_(torch.stack([chosen.sum(0), kept.sum(0)]))
            return outputs
        place = next((i for i, one in enumerate(several) if i != index and one.is_floating_point()), index)
        several[place] = _Joined.apply(several[place], (kept * self.prices).sum())  # type: ignore[no-untyped-call]
        return tuple(several) if isinstance(outputs, tuple) else several[0]


def told(balance: Balance | None, batch: MicroBatch, mode: str) -> AbstractContextManager[None]:
    """The context of a micro-batch's pass. Without a loss, nothing."""
    return nullcontext() if balance is None else balance.of(batch, mode)


class _Joined(torch.autograd.Function):
    """The first argument as it is. In the backward pass the second, a scalar, is a part of the loss."""

    @staticmethod
    def forward(ctx: Any, output: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(part)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (part,) = ctx.saved_tensors
        return gradients[0], torch.ones_like(part)


class BalancedRouters(Patch):
    """The routers of a model tell `balance` what they choose.

    Args:
        model: any wrapper of a transformers model.
        balance: of the run.
    """

    def __init__(self, model: torch.nn.Module, balance: Balance) -> None:
        self._model, self._balance = model, balance

    def apply(self, edits: Edits) -> None:
        for router, index in routers_with_logits(self._model):
            edits.assign(router, "forward", _told(self._balance, router.forward, index))


def _told(balance: Balance, plain: Callable[..., Any], index: int) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        return balance.through(plain(*args, **kwargs), index)

    return forward


def routers_with_logits(model: torch.nn.Module) -> list[tuple[torch.nn.Module, int]]:
    """The routers whose logits transformers records for the loss, with the place of the logits among what they give."""
    base = base_of(model)
    recorded = (getattr(base, "_can_record_outputs", None) or {}).get("router_logits")
    found = []
    for recorder in recorded if isinstance(recorded, list | tuple) else [recorded]:
        kind, index = getattr(recorder, "target_class", recorder), getattr(recorder, "index", 0)
        if isinstance(kind, type) and not getattr(recorder, "layer_name", None):
            found += [(module, index) for module in base.modules() if isinstance(module, kind)]
    return found


@torch.no_grad()
def disagrees(model: torch.nn.Module, balance: Balance, vocab_size: int, device: torch.device) -> str:
    """Why the loss here is not that of the family itself on a few tokens. Empty: it is.

    Args:
        model: with `BalancedRouters`.
        balance: of it.
        vocab_size: of the model.
        device: of the model.
    """
    ids = torch.arange(24, device=device)[None] * 7 % vocab_size
    base: Any = base_of(model)
    theirs = base(input_ids=ids, use_cache=False, output_router_logits=True).aux_loss
    balance.reset()
    balance.mode = COUNTING
    try:
        base(input_ids=ids, use_cache=False)
    finally:
        balance.mode = ""
    balance.settle(balance.tallies)
    if not isinstance(theirs, torch.Tensor) or abs(balance.loss - float(theirs)) > 2e-2 * abs(float(theirs)):
        return f"it is {balance.loss:.4g} here and {float(theirs):.4g} in transformers"
    return ""
