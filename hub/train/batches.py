"""Which samples make a step, and how a step is cut into micro-batches. Pure Python: the same on every rank.

A step is N samples of a seeded permutation, whatever the number of processes. They are split into world x k bins: k is the
least for which every bin keeps within the token bound, and bins are balanced by cost = tokens + ratio * sum(length^2), since
attention is quadratic in the length of a sample.
"""

import heapq
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One optimizer step."""

    number: int
    """Counted from 1 over the whole run."""

    epoch: int
    place: int
    """Samples of this epoch that came before."""

    samples: tuple[int, ...]
    """Indices into the training set."""


def epoch_order(num_samples: int, seed: int, epoch: int) -> list[int]:
    """The order of the samples in one pass. Python's own generator: the same on every machine and version."""
    order = list(range(num_samples))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


def num_steps(num_samples: int, batch_size: int, num_epochs: float, max_steps: int | None) -> int:
    """Optimizer steps of a run. A pass ends with a smaller step when the batch size does not divide it."""
    per_epoch = -(-num_samples // batch_size)
    total = max(1, round(per_epoch * num_epochs))
    return total if max_steps is None else min(total, max_steps)


def auto_batch_size(num_samples: int) -> int:
    """The effective batch size of `auto`.

    Small data sets need many small steps to be learnt at all; large ones gain from a steadier gradient.
    """
    return 32 if num_samples < 1000 else 128 if num_samples < 10000 else 256


def steps(num_samples: int, batch_size: int, total: int, seed: int, after: int = 0) -> Iterator[Step]:
    """All steps of a run, or those after step `after`."""
    per_epoch = -(-num_samples // batch_size)
    order, order_epoch = [], -1
    for number in range(after + 1, total + 1):
        epoch, turn = divmod(number - 1, per_epoch)
        place = turn * batch_size
        if epoch != order_epoch:
            order, order_epoch = epoch_order(num_samples, seed, epoch), epoch
        yield Step(number, epoch, place, tuple(order[place : place + batch_size]))


def split(lengths: Sequence[int], world: int, max_tokens: int, ratio: float = 0.0) -> list[list[list[int]]]:
    """Cut one step into micro-batches.

    Args:
        lengths: tokens of each sample of the step.
        world: number of ranks.
        max_tokens: bound of tokens in one micro-batch; no sample may be longer.
        ratio: cost of one squared token in units of one token's cost (see `cost_ratio`).

    Returns:
        For each rank its k micro-batches, each a list of positions in `lengths`. k is the same on all ranks; a micro-batch
        may be empty. Bins of like cost meet in the same micro-batch of the different ranks.

    Raises:
        ValueError: a sample is longer than the bound.
    """
    if lengths and max(lengths) > max_tokens:
        raise ValueError(f"a sample of {max(lengths)} tokens does not fit into max_tokens={max_tokens}")
    costs = [length + ratio * length * length for length in lengths]
    heaviest_first = sorted(range(len(lengths)), key=lambda i: (-costs[i], i))
    per_rank = max(1, -(-sum(lengths) // (world * max_tokens)))
    while (bins := _fill(heaviest_first, lengths, costs, world * per_rank, max_tokens)) is None:
        per_rank += 1
    bins.sort(key=lambda positions: -sum(costs[i] for i in positions))
    parts: list[list[list[int]]] = [[] for _ in range(world)]
    for turn in range(per_rank):
        row = bins[turn * world : (turn + 1) * world]
        for rank, positions in enumerate(row if turn % 2 == 0 else reversed(row)):
            parts[rank].append(sorted(positions))
    return parts


def _fill(
    order: Sequence[int], lengths: Sequence[int], costs: Sequence[float], num_bins: int, max_tokens: int
) -> list[list[int]] | None:
    """Longest processing time first: each sample goes to the cheapest bin that has room. None when one finds no room."""
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    tokens = [0] * num_bins
    heap = [(0.0, number) for number in range(num_bins)]
    for i in order:
        passed_over = []
        while heap and tokens[heap[0][1]] + lengths[i] > max_tokens:
            passed_over.append(heapq.heappop(heap))
        if not heap:
            return None
        cost, number = heapq.heappop(heap)
        bins[number].append(i)
        tokens[number] += lengths[i]
        for entry in [*passed_over, (cost + costs[i], number)]:
            heapq.heappush(heap, entry)
    return bins


def cost_ratio(num_layers: int, hidden_size: int, num_parameters: int) -> float:
    """Cost of attention over a sample, per squared token, in units of one token's matrix products.

    Matrix products take 2 P operations per token, causal attention 2 L H n^2 per sample of n tokens.
    """
    return num_layers * hidden_size / max(1, num_parameters)
