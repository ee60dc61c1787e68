"""The gradient of one step in any layout, and the reference gradient from plain calls of the model.

A step is training's own (`train_step`, whole), up to where the optimizer would change the weights.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.tensor import DTensor

from hub.config.option import AUTO
from hub.data.samples.sample import Sample, Unit, samples_of
from hub.models.structure import max_positions, text_config
from hub.parallel.group import max_over_ranks, sum_over_ranks
from hub.parallel.strategy import full
from hub.train import step
from hub.train.batch import collate
from hub.train.batch import split as batches
from hub.train.kernels.rope import rope_by_length
from hub.train.layout.layout import Layout, Shrink
from hub.train.losses.causal_lm import Loss, causal_lm_loss, takes_positions
from hub.train.losses.objective import NextToken, token_weights
from hub.train.passes import passes_of
from hub.train.setup.setup import Setup

MOST_SAMPLES = 32
MOST_TOKENS = {"cpu": 1024, "cuda": 4096}
CPU_WORK = 4e10
LEAST_TOKENS = 256
"""Enough samples for several micro-batches on each process, and few enough tokens for a minute or so. On a CPU at most
`CPU_WORK` over the number of parameters, but at least `LEAST_TOKENS`."""

FLOOR = {("cpu", torch.float32): 1e-6, ("cuda", torch.float32): 1e-5}
COARSE_FLOOR = 2e-2
"""Smallest tolerance of a gradient's relative difference. The second one is for arithmetic in bfloat16."""

NOISE_FACTOR = 4.0
"""Tolerance over rounding noise: a layout reorders more sums than the measurement of the noise does."""

EXTRA_TOKENS = 7
"""Tokens appended to each sample when noise is measured. Earlier tokens can't see them, but sums are split differently."""


@dataclass
class Gradient:
    """The gradient of one step, compared with the reference. The gradient itself is on rank 0 only."""

    difference: float
    """Norm of the difference from the reference over the norm of the reference. NaN on the other ranks."""

    loss: float
    num_loss_tokens: int
    """Number of loss tokens over all ranks and micro-batches, as counted at the loss."""

    same_on_ranks: bool
    layout: Layout
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)


class OneByOne(Layout):
    """Layout with one sample in each micro-batch."""

    def _split(self, samples: Sequence[Sample], world: int) -> list[list[list[int]]]:
        per_rank = -(-len(samples) // world)
        ranks: list[list[list[int]]] = []
        for rank in range(world):
            mine = [[i] for i in range(rank, len(samples), world)]
            ranks.append(mine + [[]] * (per_rank - len(mine)))
        return ranks


class _Look(torch.optim.Optimizer):  # type: ignore[misc]  # torch's types are not read
    """Stand-in for the optimizer: reads the gradients of a step and changes nothing."""

    def __init__(self, parameters: list[torch.nn.Parameter], begin: Callable[[], None], look: Callable[[], None]) -> None:
        super().__init__(parameters, {})
        self._begin, self._look = begin, look

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset before each attempt: one that runs out of memory is retried."""
        super().zero_grad(set_to_none)
        self._begin()

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        self._look()


class Measure:
    """The samples, the reference gradient, its rounding noise, and steps to compare with it. All ranks make the same calls."""

    def __init__(self, setup: Setup, model: torch.nn.Module, criterion: step.Criterion, layout: Layout, shrink: Shrink) -> None:
        self.setup, self.model, self.criterion, self.layout, self.shrink = setup, model, criterion, layout, shrink
        self.session, self.data = setup.session, setup.data
        self.rank, self.world = setup.session.group.rank, setup.session.group.world
        self.device, self.dtype = setup.session.device, setup.session.compute_dtype
        self.exact, self.dtype_name = self.dtype == torch.float32, str(self.dtype).removeprefix("torch.")
        self.config = text_config(model)
        self.trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        asked, num = setup.cfg.algo.effective_batch_size, len(self.data.train)
        self.batch_size = batches.auto_batch_size(num) if asked == AUTO else int(asked)
        self.units = list(criterion.objective.completed(self._choose()))
        criterion.objective.prepare(passes_of(setup, model, criterion, lambda: layout, lambda used: None, [(self.units, True)]))
        self.samples = samples_of(self.units)
        self.num_loss_tokens = sum(int(sample.loss_mask[1:].sum()) for sample in self.samples)
        # Counted independently of training, whose count is checked.
        self.divisor = float(max(1, self.num_loss_tokens))
        if type(criterion.objective) is not NextToken:
            self.divisor = criterion.objective.divisor(step.members(self.units))
        self.loss_sum, weights = self._weights()
        self.reference: dict[str, torch.Tensor] = {}
        weighted = list(zip(self.samples, weights, strict=True))
        self.reference_loss, _ = self._one_at_a_time(weighted)
        self.reference = self._copy()
        _, self.noise = self._one_at_a_time(weighted[::-1], reordered=True)
        self.tolerance = max(FLOOR.get((self.device.type, self.dtype), COARSE_FLOOR), NOISE_FACTOR * self.noise)

    def _choose(self) -> list[Unit]:
        """Return the units of the first step, and short ones if they are too few for four micro-batches a process."""
        order = [self.data.train[i] for i in batches.epoch_order(len(self.data.train), self.setup.cfg.algo.seed, 0)]
        least = min(4 * self.world, len(order))
        wanted = min(max(self.batch_size, least), max(MOST_SAMPLES, self.world))
        budget = MOST_TOKENS["cuda" if self.device.type == "cuda" else "cpu"]
        if self.device.type != "cuda":
            budget = min(budget, max(LEAST_TOKENS, int(CPU_WORK / sum(p.numel() for p in self.model.parameters()))))
        chosen: list[Unit] = []
        left: list[Unit] = []
        for place, unit in enumerate(order):
            fits = place < wanted and sum(map(len, chosen)) + len(unit) <= budget
            (chosen if fits else left).append(unit)
        rest = sorted(left, key=len)
        return chosen + rest[: max(0, least - len(chosen))]

    def _weights(self) -> tuple[float | None, list[torch.Tensor | None]]:
        """Compute the summed loss and the weights of each sample's loss tokens by plain calls of the model. None: all are 1."""
        if self.criterion.objective.has_unit_weights:
            return None, [None] * len(self.samples)
        with torch.no_grad(), self.session.autocast():
            values = [-self._token_losses(sample).double().cpu() for sample in self.samples]
        loss, weights = token_weights(self.criterion.objective, step.members(self.units), torch.cat(values))
        return float(loss), list(weights.split([len(value) for value in values]))

    def _one_at_a_time(
        self, samples: Sequence[tuple[Sample, torch.Tensor | None]], reordered: bool = False
    ) -> tuple[float, float]:
        """Compute the gradient of the step's mean loss by plain calls of the model, in `.grad` of rank 0.

        Args:
            samples: each with the weights of its loss tokens.
            reordered: whether to split the terms of the sums differently.

        Returns:
            The mean loss, and the relative difference from the reference.
        """
        self.model.zero_grad(set_to_none=True)
        together = self.session.strategy.name == "fsdp"  # all ranks must run a layer, to all-gather it
        total = 0.0
        for sample, weights in samples if together or self.rank == 0 else ():
            with self.session.autocast():
                loss_sum = self._loss_of(sample, weights, reordered)
            ((loss_sum / self.divisor) * (1.0 if self.rank == 0 else 0.0)).backward()
            total += float(loss_sum.detach())
        return (total if self.loss_sum is None else self.loss_sum) / self.divisor, self._difference()

    def _loss_of(self, sample: Sample, weights: torch.Tensor | None, reordered: bool) -> torch.Tensor:
        """Compute the weighted sum of the cross entropies of one sample, or call the algorithm's own loss."""
        if self.criterion.loss is not causal_lm_loss:
            batch = collate.pad([sample], self.layout.pad_id) if reordered else collate.pack([sample])
            return self.criterion.loss(self.model, replace(batch, weights=weights).to(self.device))
        losses = self._token_losses(sample, reordered)
        return losses.sum() if weights is None else losses @ weights.to(losses.device)

    def _token_losses(self, sample: Sample, reordered: bool = False) -> torch.Tensor:
        """Compute the cross entropy of each loss token of one sample, (n,), by a plain call of the model.

        Args:
            sample: one sample.
            reordered: whether to split the sums differently: more tokens behind, and the output layer only at the loss
                positions, if the model can do that.
        """
        ids = torch.from_numpy(sample.input_ids.astype(np.int64))
        places = torch.from_numpy(np.flatnonzero(sample.loss_mask[1:])).to(self.device)
        inputs: dict[str, object] = {"input_ids": ids[None].to(self.device), "use_cache": False}
        select = reordered and _can_select(self.model)
        if reordered:
            extra = 0 if rope_by_length(self.model) else EXTRA_TOKENS
            room = max(0, min(extra, (max_positions(self.config) or 10**9) - len(ids)))
            inputs["input_ids"] = torch.cat([ids, ids[:1].expand(room)])[None].to(self.device)
        if select:
            inputs["logits_to_keep"] = places
        logits = self.model(**inputs).logits[0]
        logits = logits if select else logits[places.to(logits.device)]
        return F.cross_entropy(logits.float(), ids.to(logits.device)[places.to(logits.device) + 1], reduction="none")

    def _gradients(self) -> Iterator[tuple[str, torch.Tensor | None]]:
        """Yield the unsharded gradients. All ranks must call it."""
        for name, parameter in self.trained:
            yield name, None if parameter.grad is None else full(parameter.grad)

    def _copy(self) -> dict[str, torch.Tensor]:
        copied: dict[str, torch.Tensor] = {}
        for name, gradient in self._gradients():
            if self.rank == 0 and gradient is not None:
                copied[name] = gradient.detach().to("cpu", copy=True)
        return copied

    def _difference(self) -> float:
        """Return the norm of (gradients - reference) over the norm of the reference. NaN on ranks other than 0."""
        error = size = 0.0
        for name, gradient in self._gradients():
            expected = self.reference.get(name)
            if expected is not None:
                size += _square(expected)
            if gradient is not None:
                error += _square(gradient if expected is None else gradient - expected.to(gradient.device))
            elif expected is not None:
                error += _square(expected)
        if self.rank != 0:
            return math.nan
        return math.sqrt(error / size) if size else (0.0 if error == 0 else math.inf)

    def take_step(self, layout: Layout, units: Sequence[Unit] = (), loss: Loss | None = None, keep: bool = False) -> Gradient:
        """Run one training step in a layout, up to where the optimizer would change the weights."""
        seen = 0
        called = loss or self.criterion.loss
        gradient = Gradient(math.nan, math.nan, 0, True, layout)

        def counting(model: torch.nn.Module, batch: collate.MicroBatch) -> torch.Tensor:
            nonlocal seen
            seen += len(batch.targets)
            return called(model, batch)

        def begin() -> None:
            nonlocal seen
            seen = 0

        def look() -> None:
            gradient.num_loss_tokens = int(sum_over_ranks(float(seen))[0])
            gradient.difference = self._difference()
            gradient.same_on_ranks = self._same_on_ranks()
            if keep:
                gradient.tensors = self._copy()

        optimizer = _Look([p for _, p in self.trained], begin, look)
        criterion = replace(self.criterion, loss=counting)
        outcome = step.train_step(
            self.session, self.model, optimizer, units or self.units, layout, None, criterion, shrink=self.shrink
        )
        gradient.loss, gradient.layout = outcome.loss, outcome.layout
        return gradient

    def _same_on_ranks(self) -> bool:
        """Return whether every rank has rank 0's gradient, bit for bit. Shards are not compared, since they differ anyway."""
        if not dist.is_initialized():
            return True
        same = True
        for _, parameter in self.trained:
            if parameter.grad is not None and not isinstance(parameter.grad, DTensor):
                of_main = parameter.grad.clone()
                dist.broadcast(of_main, 0)
                same = same and torch.equal(of_main, parameter.grad)
        return max_over_ranks(float(not same)) == 0.0

    def cut(self, layout: Layout) -> tuple[type[Layout], bool, str]:
        """Return the split of the samples. It is equal for two layouts that do the same here."""
        lengths = [len(sample) for sample in self.samples]
        parts = (
            ()
            if isinstance(layout, OneByOne)
            else batches.split(lengths, self.world, max(layout.max_tokens, max(lengths)), layout.cost_ratio)
        )
        return type(layout), layout.packed, str(parts)

    def in_pieces(self, layout: Layout, count: int) -> Layout | None:
        """Return the layout with the smallest bound that gives `count` micro-batches on each process. None: no layout does."""
        lengths = [len(sample) for sample in self.samples]
        if count * self.world > len(lengths):
            return None
        bound = max(max(lengths), -(-sum(lengths) // (self.world * count)))
        while len(batches.split(lengths, self.world, bound, layout.cost_ratio, count)[0]) > count:
            bound += max(1, bound // 50)
        return replace(layout, max_tokens=bound, least=count)


def _can_select(model: torch.nn.Module) -> bool:
    """Return whether the output layer can compute chosen positions only. It can't if the layers are on several devices."""
    return len(set(getattr(model, "hf_device_map", {}).values())) < 2 and takes_positions(model)


def _square(tensor: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64)) ** 2
