"""Runs one ragged batch through many layouts and stores each layout's gradient. Started by test_layouts.py, on 1 to 4 ranks.

python -m torch.distributed.run --nproc-per-node=2 layouts.py MODEL OUT [MOST_TOKENS_ON_LAST_RANK]
"""

import signal
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from hub.data.samples.sample import Group, Sample, Unit, samples_of
from hub.parallel.group import Group as Ranks
from hub.parallel.group import barrier, max_over_ranks, start_group, stop_requested, sum_gradients
from hub.parallel.session import Session
from hub.parallel.strategy import Replicated
from hub.system.signals import end_process, stop_request
from hub.train import step
from hub.train.attempts import on_all_ranks
from hub.train.layout.layout import Layout
from hub.train.layout.measured_passes import MeasuredPasses
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


def passes(session, model, units, layout, criterion) -> float:
    """As train_step does it: all ranks again in smaller micro-batches when one runs out of memory."""
    values = None
    if criterion.needs_values:
        values, layout = log_probabilities(session, model, units, layout, criterion)
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


def agree(group: Ranks) -> None:
    """What all ranks must have alike: the first weights, a signal that one of them got, a gradient that one of them lacks."""
    layer = torch.nn.Linear(2, 2)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(group.rank + 1.0)
    layer.bias.requires_grad_(False)  # a frozen weight is that of the file, and is not sent
    Replicated().place(layer)
    assert layer.weight.eq(1).all()
    assert layer.bias.eq(group.rank + 1).all()
    assert stop_requested() is None
    stop_request.signal_number = signal.SIGTERM if group.rank == group.world - 1 else None
    assert stop_requested() == signal.SIGTERM
    stop_request.signal_number = None
    layer.requires_grad_(True)
    layer.weight.grad = None if group.rank == 1 else torch.full((2, 2), 0.5)
    layer.bias.grad = torch.ones(2)
    for bucket_bytes in (1, 2**20):
        sum_gradients(layer.parameters(), bucket_bytes)
    assert layer.weight.grad.eq(0.5 * (group.world - 1) * group.world).all()
    assert layer.bias.grad.eq(group.world**2).all()


def measure_alike(group: Ranks) -> None:
    """Memory is short on the last rank alone: all ranks try fewer tokens, and none waits for another."""
    ran: list[int] = []

    def run(chosen: list[Sample]) -> int:
        ran.append(sum(map(len, chosen)))
        if group.rank == group.world - 1 and ran[-1] > 500:
            raise torch.OutOfMemoryError("no room")
        return ran[-1]

    def choose(most: int) -> list[Sample]:
        ends = np.cumsum([len(sample) for sample in batch("ragged")])
        return batch("ragged")[: max(1, int((ends <= most).sum()))]

    memory = SimpleNamespace(allocated=int, peak=lambda: 1000 * ran[-1], release=bool, reset_peak=bool)
    line = MeasuredPasses(memory, group.device, run, choose, [], recovers=True, longest=60, instead="").line(900, 1e9)
    assert line is not None
    assert line.per_token == 1000
    assert max_over_ranks(float(ran[-1])) == ran[-1] <= 500
    assert -max_over_ranks(-float(max(ran))) > 500  # the last rank tried more too
    assert on_all_ranks(lambda: choose(1) if group.rank else run(batch("ragged")))[1] is None
    assert on_all_ranks(lambda: run(batch("ragged")))[1] is not None


def main(model_path: str, out: Path, most_tokens_on_last_rank: str = "") -> None:
    group = start_group()
    if group.world > 1:
        agree(group)
        measure_alike(group)
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    model.train()
    session = Session(group, Accelerator(cpu=True), torch.float32)
    if most_tokens_on_last_rank and group.rank == group.world - 1:
        little_memory(model, int(most_tokens_on_last_rank))
    for name, objective in OBJECTIVES.items():
        units = units_of(name)
        samples = samples_of(units)
        total, longest = sum(map(len, samples)), max(map(len, samples))
        criterion = Criterion(objective)
        for micro_batches, packed in product((1, 2, 4), (True, False)):
            bound = max(longest, -(-total // (group.world * micro_batches)) + longest // 2)
            layout = Layout(bound, packed, pad_id=0, cost_ratio=0.01)
            model.zero_grad()
            local = passes(session, model, units, layout, criterion)
            sum_gradients(model.parameters())
            mean = evaluate(session, model, units, layout, criterion).loss
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
