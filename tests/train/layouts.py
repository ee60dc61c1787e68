"""Runs one ragged batch through many layouts and stores each layout's gradient. Started by test_layouts.py, on 1 to 4 ranks.

python -m torch.distributed.run --nproc-per-node=2 layouts.py MODEL OUT [MUTANT]
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from hub.data.samples.sample import Group, Sample, Unit, samples_of
from hub.parallel.group import barrier, start_group, sum_gradients
from hub.parallel.session import Session
from hub.system.signals import end_process
from hub.train import step
from hub.train.batch import collate
from hub.train.batch.split import split
from hub.train.layout import layout as layouts
from hub.train.layout.layout import Layout
from hub.train.losses import objective
from hub.train.losses.causal_lm import Loss, causal_lm_loss
from hub.train.losses.objective import NextToken, Objective
from hub.train.step import Criterion, evaluate, log_probabilities, weigh


def batch(name: str) -> list[Sample]:
    """`ragged`: 32 samples, some with one loss token, some with none. `partial`: 3, fewer than the ranks may be."""
    rng = np.random.default_rng(5)
    samples = []
    for number in range(32 if name == "ragged" else 3):
        length = int(rng.integers(4, 60))
        mask = rng.random(length) < (0.0 if number % 7 == 3 else 0.05 if number % 3 else 0.8)
        mask[-1] |= number % 7 != 3
        samples.append(Sample(rng.integers(3, 512, length).astype(np.int32), mask, str(number)))
    return samples


class SquaredDifference(Objective):
    """Made up: couples the two samples of a unit by the squared difference of their mean log-probabilities."""

    roles = ("chosen", "rejected")

    def divisor(self, units):
        return len(units)

    def loss(self, units, values):
        return sum((_mean(first) - _mean(second)).square() for first, second in values)


def _mean(values: torch.Tensor) -> torch.Tensor:
    return values.sum() / max(1, len(values))


OBJECTIVES = {"ragged": NextToken(), "partial": NextToken(), "pairs": SquaredDifference()}


def units_of(name: str) -> list[Unit]:
    """The samples of a batch; of `pairs`, two by two: a long and a short one, so that layouts put them apart."""
    if name != "pairs":
        return batch(name)
    ordered = sorted(batch("ragged"), key=len)
    pairs = zip(ordered[:16], reversed(ordered[16:]), strict=True)
    return [Group((replace(a, role="chosen"), replace(b, role="rejected")), a.where) for a, b in pairs]


def num_apart(layout: Layout, units: list[Unit], world: int) -> tuple[int, int]:
    """Units whose samples lie in different micro-batches, and on different ranks."""
    samples = samples_of(units)
    places = {}
    for rank in range(world):
        for number, micro in enumerate(layout.micro_batches(samples, rank, world)):
            places |= {position: (rank, number) for position in micro.samples}
    pairs = [(places[i], places[i + 1]) for i in range(0, len(samples), 2)]
    return sum(a != b for a, b in pairs), sum(a[0] != b[0] for a, b in pairs)


def mean_per_micro_batch(model, micro):
    return causal_lm_loss(model, micro) / max(1, len(micro.targets)) * 10


def shifted_count(sample):
    return int(sample.loss_mask.sum()) + 1


def leaking_attention(samples):
    packed = collate.pack(samples)
    positions = torch.arange(packed.num_tokens)[None]
    return collate.MicroBatch(packed.input_ids, positions, None, packed.loss_positions, packed.targets, packed.num_tokens)


def values_of_another_unit(session, model, units, layout, criterion):
    values, layout = log_probabilities(session, model, units, layout, criterion)
    return values.roll(1), layout


def passes(session, model, units, layout, criterion, find_values=log_probabilities) -> float:
    """As train_step does it: all ranks again in smaller micro-batches when one runs out of memory."""
    values = None
    if criterion.needs_values:
        values, layout = find_values(session, model, units, layout, criterion)
    _, weights = weigh(criterion.objective, units, values)

    def attempt(smaller: Layout) -> torch.Tensor:
        model.zero_grad()
        return step.accumulate_gradients(session, model, units, smaller, criterion, weights)

    return float(step.retry_on_oom(attempt, samples_of(units), layout)[0])


def little_memory(model, most_tokens: int) -> None:
    forward = model.forward

    def limited(input_ids, **rest):
        if input_ids.numel() > most_tokens:
            raise torch.OutOfMemoryError(f"{input_ids.numel()} tokens")
        return forward(input_ids=input_ids, **rest)

    model.forward = limited


@dataclass
class Run:
    """What `main` runs: correct, or with the one mistake of a mutant."""

    session: Session
    loss: Loss = causal_lm_loss
    find_values: Callable[..., tuple[torch.Tensor, Layout]] = log_probabilities

    names: tuple[str, ...] = tuple(OBJECTIVES)
    """Batches to run. Some mutants know only rows of one sample."""

    sees_weights: bool = True
    num_dropped: int = 0
    mean_per_rank: bool = False


def mistaken(run: Run, model, mutant: str) -> Run:
    """Build in the mistake of a mutant. An empty name changes nothing."""
    group, singles = run.session.group, tuple(name for name in OBJECTIVES if name != "pairs")
    if mutant == "mean_per_micro_batch":
        return replace(run, loss=mean_per_micro_batch, names=singles)
    if mutant == "little_memory_on_the_last_rank" and group.rank == group.world - 1:
        little_memory(model, 120)
    if mutant == "shifted_count":
        objective.num_loss_tokens = shifted_count
        return replace(run, names=singles)
    if mutant == "leaking_attention":
        layouts.pack = leaking_attention
    if mutant == "mean_per_rank":
        alone = Session(type(group)(0, 1, 0, group.device), run.session.accelerator, torch.float32)
        return replace(run, session=alone, names=singles, mean_per_rank=True)
    if mutant == "values_of_another_unit":
        return replace(run, find_values=values_of_another_unit)
    if mutant == "dropped_tail":
        return replace(run, num_dropped=2)
    return replace(run, sees_weights=mutant != "another_weight")


def without_weights(model, micro):
    return causal_lm_loss(model, replace(micro, weights=None))


def mean_of_each_rank(run: Run, model, group, samples: list[Sample], layout: Layout, criterion: Criterion) -> float:
    """Each rank takes the mean over its own samples, and the ranks' gradients are averaged."""
    parts = split([len(sample) for sample in samples], 2, layout.max_tokens, 0.01)[group.rank]
    mine = [samples[i] for part in parts for i in part] or samples[:1]
    local = step.accumulate_gradients(run.session, model, mine, replace(layout, max_tokens=10**6), criterion)
    sum_gradients(model.parameters())
    for parameter in model.parameters():
        parameter.grad /= group.world
    return float(local)


def main(model_path: str, out: Path, mutant: str = "") -> None:
    group = start_group()
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    model.train()
    run = mistaken(Run(Session(group, Accelerator(cpu=True), torch.float32)), model, mutant)
    for name in run.names:
        units = units_of(name)
        samples = samples_of(units)
        total, longest = sum(map(len, samples)), max(map(len, samples))
        units = units[: len(units) - run.num_dropped]
        criterion = Criterion(OBJECTIVES[name], run.loss if run.sees_weights else without_weights)
        for micro_batches, packed in product((1, 2, 4), (True, False)):
            bound = max(longest, -(-total // (group.world * micro_batches)) + longest // 2)
            layout = Layout(bound, packed, pad_id=0, cost_ratio=0.01)
            model.zero_grad()
            if run.mean_per_rank:
                local = mean_of_each_rank(run, model, group, samples, layout, criterion)
                layout = replace(layout, max_tokens=10**6)
            else:
                local = passes(run.session, model, units, layout, criterion, run.find_values)
                sum_gradients(model.parameters())
            mean = evaluate(run.session, model, units, layout, criterion).loss
            if group.rank == 0:
                gradients = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
                gradients["_eval_loss"] = torch.tensor([mean], dtype=torch.float64)
                if name == "pairs":
                    gradients["_apart"] = torch.tensor(num_apart(layout, units, group.world))
                kind = "packed" if packed else "padded"
                save_file(gradients, out / f"{name}-{group.world}x{micro_batches}-{kind}.safetensors")
            assert np.isfinite(local)
    barrier()


def reference(model_path: str, name: str) -> dict[str, torch.Tensor]:
    """The same gradient in float64 without any of the hub's code: one sample at a time, one sum, one division."""
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float64)
    units = units_of(name)
    if name == "pairs":
        means = [[_mean(_plain_values(model, sample)) for sample in unit.samples] for unit in units]
        loss = sum((first - second) ** 2 for first, second in means) / len(units)
    else:
        values = [_plain_values(model, sample) for sample in units]
        loss = -torch.cat(values).sum() / sum(map(len, values))
    loss.backward()
    gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    return gradients | {"_eval_loss": loss.detach()[None]}


def _plain_values(model, sample: Sample) -> torch.Tensor:
    """Log-probabilities of a sample's loss tokens."""
    ids = torch.from_numpy(sample.input_ids.astype(np.int64))
    log_probabilities = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
    return log_probabilities.gather(-1, ids[1:, None])[:, 0][torch.from_numpy(sample.loss_mask[1:])]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
    end_process(0)
