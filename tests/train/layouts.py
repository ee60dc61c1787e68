"""Runs one ragged batch through many layouts and stores each layout's gradient. Started by test_layouts.py, on 1 to 4 ranks.

python -m torch.distributed.run --nproc-per-node=2 layouts.py MODEL OUT [MUTANT]
"""

import sys
from dataclasses import replace
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
from hub.train.losses.causal_lm import causal_lm_loss
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


def main(model_path: str, out: Path, mutant: str = "") -> None:
    group = start_group()
    session = Session(group, Accelerator(cpu=True), torch.float32)
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    model.train()
    loss = mean_per_micro_batch if mutant == "mean_per_micro_batch" else causal_lm_loss
    if mutant == "little_memory_on_the_last_rank" and group.rank == group.world - 1:
        little_memory(model, 120)
    if mutant == "shifted_count":
        objective.num_loss_tokens = shifted_count
    if mutant == "leaking_attention":
        layouts.pack = leaking_attention
    if mutant == "mean_per_rank":
        session = Session(type(group)(0, 1, 0, group.device), session.accelerator, torch.float32)
    find_values = values_of_another_unit if mutant == "values_of_another_unit" else log_probabilities
    for name in OBJECTIVES:
        units = units_of(name)
        if mutant in ("shifted_count", "mean_per_rank", "mean_per_micro_batch") and name == "pairs":
            continue
        samples = samples_of(units)
        total, longest = sum(map(len, samples)), max(map(len, samples))
        criterion = Criterion(OBJECTIVES[name], loss)
        if mutant == "dropped_tail":
            units = units[:-2]
        if mutant == "another_weight":
            criterion = replace(criterion, loss=lambda model, micro: causal_lm_loss(model, replace(micro, weights=None)))
        for micro_batches in (1, 2, 4):
            bound = max(longest, -(-total // (group.world * micro_batches)) + longest // 2)
            for packed in (True, False):
                layout = Layout(bound, packed, pad_id=0, cost_ratio=0.01)
                model.zero_grad()
                if mutant == "mean_per_rank":
                    lengths = [len(s) for s in samples]
                    parts = split(lengths, 2, bound, 0.01)[group.rank]
                    mine = [samples[i] for part in parts for i in part] or samples[:1]
                    layout = Layout(10**6, packed, 0, 0.01)
                    local = step.accumulate_gradients(session, model, mine, layout, criterion)
                else:
                    local = passes(session, model, units, layout, criterion, find_values)
                sum_gradients(model.parameters())
                if mutant == "mean_per_rank":
                    for parameter in model.parameters():
                        parameter.grad /= group.world
                mean, _ = evaluate(session, model, units, layout, criterion)
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
