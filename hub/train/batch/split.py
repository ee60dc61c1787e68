"""Which units make a step, and how a step is split into micro-batches. Pure Python: the same on every rank.

A step draws N units, whatever the number of processes: of each source as many as the mix sets, in the order of a seeded
permutation of that source, a new one for each pass over it. Their samples are split into world x k bins: k is the least for
which every bin stays within the token budget. Bins are balanced by cost = tokens + ratio * sum(length^2), since attention is
quadratic in the length of a sample.
"""

import heapq
import random
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from hub.data.samples.mix import Mix

MOST_IMBALANCE = 1.05
"""Cost of the most expensive rank over the mean, up to which fewer micro-batches are worth it."""


BALANCED = 1.003
"""Cost of the most expensive micro-batch over the mean, below which they are balanced enough."""


@dataclass(frozen=True)
class Step:
    """One optimizer step."""

    number: int
    """Counted from 1 over the whole run."""

    epoch: int
    place: int
    """Number of samples of this epoch in earlier steps."""

    counts: tuple[int, ...]
    """Number of samples of each source."""

    samples: tuple[int, ...] = ()
    """Indices into the training set, which has the sources one after the other. Empty for a stream."""

    @property
    def size(self) -> int:
        """Number of samples."""
        return sum(self.counts)


def epoch_order(num_samples: int, seed: int, epoch: int, source: int = 0) -> list[int]:
    """Return the order of a source's samples in one pass. Python's own generator gives it on every machine and version."""
    order = list(range(num_samples))
    random.Random(f"{seed}/{source}/{epoch}" if source else f"{seed}/{epoch}").shuffle(order)
    return order


def num_steps(num_samples: int, batch_size: int, num_epochs: float, max_steps: int | None) -> int:
    """Count the optimizer steps of a run: `max_steps` if it is set, else those of `num_epochs`.

    A pass ends with a smaller step if the batch size does not divide it.
    """
    return max(1, round(-(-num_samples // batch_size) * num_epochs)) if max_steps is None else max_steps


def auto_batch_size(num_samples: int | None) -> int:
    """Return the effective batch size of `auto`. None: a stream of unknown length.

    Small datasets need many small steps to be learned at all. Large ones gain from a less noisy gradient.
    """
    if num_samples is None:
        return 256
    return 32 if num_samples < 1000 else 128 if num_samples < 10000 else 256


def step_sizes(per_pass: int | None, batch_size: int, total: int) -> Iterator[int]:
    """Yield the number of samples of each step. A pass ends with a smaller step if the batch size does not divide it."""
    whole, rest = divmod(per_pass or batch_size, batch_size)
    sizes = [batch_size] * whole + [rest] * (rest > 0)
    for number in range(total):
        yield sizes[number % len(sizes)]


def draw(mix: Mix, batch_size: int, total: int, after: int = 0) -> Iterator[Step]:
    """Yield the steps of a run after step `after`, with the number of samples of each source."""
    epoch = place = 0
    for number, counts in enumerate(mix.counts(step_sizes(mix.per_pass, batch_size, total)), 1):
        if number > after:
            yield Step(number, epoch, place, counts)
        place += sum(counts)
        if mix.per_pass is not None and place >= mix.per_pass:
            epoch, place = epoch + 1, 0


def steps(mix: Mix, batch_size: int, total: int, seed: int, after: int = 0) -> Iterator[Step]:
    """Yield the steps of a run after step `after`, over samples in memory."""
    sizes = [size or 0 for size in mix.sizes]
    begin = [sum(sizes[:source]) for source in range(len(sizes))]
    taken = [0] * len(sizes)
    orders: dict[int, tuple[int, list[int]]] = {}

    def take(source: int) -> int:
        turn, place = divmod(taken[source], sizes[source])
        if source not in orders or orders[source][0] != turn:
            orders[source] = turn, epoch_order(sizes[source], seed, turn, source)
        taken[source] += 1
        return begin[source] + orders[source][1][place]

    for step in draw(mix, batch_size, total):
        if step.number <= after:
            taken = [before + count for before, count in zip(taken, step.counts, strict=True)]
            continue
        chosen = tuple(take(source) for source, count in enumerate(step.counts) for _ in range(count))
        yield replace(step, samples=chosen)


def split(lengths: Sequence[int], world: int, max_tokens: int, ratio: float = 0.0, least: int = 1) -> list[list[list[int]]]:
    """Split one step into micro-batches.

    Args:
        lengths: tokens of each sample of the step.
        world: number of ranks.
        max_tokens: bound of tokens in one micro-batch; no sample may be longer.
        ratio: cost of one squared token in units of one token's cost (see `cost_ratio`).
        least: micro-batches on each rank, at least.

    Returns:
        For each rank its k micro-batches, each a list of positions in `lengths`. k is the same on all ranks; a micro-batch
        may be empty. Micro-batches of the ranks that run at the same time have similar cost.

    Raises:
        ValueError: a sample is longer than the bound.
    """
    if lengths and max(lengths) > max_tokens:
        raise ValueError(f"a sample of {max(lengths)} tokens does not fit into max_tokens={max_tokens}")
    costs = [length + ratio * length * length for length in lengths]
    heaviest_first = sorted(range(len(lengths)), key=lambda i: (-costs[i], i))
    per_rank = max(least, -(-sum(lengths) // (world * max_tokens)))
    while (bins := _longest_first(heaviest_first, lengths, costs, world * per_rank, max_tokens)) is None:
        # Bins that are filled one by one hold more, but their costs may differ more.
        tight = _best_fit(heaviest_first, lengths, world * per_rank, max_tokens)
        if tight is not None and _imbalance(parts := _deal(tight, costs, world), costs) <= MOST_IMBALANCE:
            return parts
        per_rank += 1
    _balance(bins, lengths, costs, max_tokens)
    return _deal(bins, costs, world)


def _deal(bins: list[list[int]], costs: Sequence[float], world: int) -> list[list[list[int]]]:
    """Deal the bins out to the ranks. Bins of similar cost share a turn. The rank with the most expensive one alternates."""
    bins = sorted(bins, key=lambda positions: -sum(costs[i] for i in positions))
    parts: list[list[list[int]]] = [[] for _ in range(world)]
    for turn in range(len(bins) // world):
        row = bins[turn * world : (turn + 1) * world]
        for rank, positions in enumerate(row if turn % 2 == 0 else reversed(row)):
            parts[rank].append(sorted(positions))
    return parts


def _imbalance(parts: list[list[list[int]]], costs: Sequence[float]) -> float:
    """Return the cost of the most expensive rank over the mean. Ranks wait for each other once per step."""
    totals = [sum(costs[i] for i in chain.from_iterable(part)) for part in parts]
    return max(totals) * len(totals) / sum(totals)


def _longest_first(
    order: Sequence[int], lengths: Sequence[int], costs: Sequence[float], num_bins: int, max_tokens: int
) -> list[list[int]] | None:
    """Longest processing time first: put each sample into the least expensive bin with room. None: a sample has no room."""
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    tokens = [0] * num_bins
    heap = [(0.0, number) for number in range(num_bins)]
    for i in order:
        full = []
        while heap and tokens[heap[0][1]] + lengths[i] > max_tokens:
            full.append(heapq.heappop(heap))
        if not heap:
            return None
        cost, number = heapq.heappop(heap)
        bins[number].append(i)
        tokens[number] += lengths[i]
        for entry in [*full, (cost + costs[i], number)]:
            heapq.heappush(heap, entry)
    return bins


def _balance(bins: list[list[int]], lengths: Sequence[int], costs: Sequence[float], max_tokens: int) -> None:
    """Balance bins: while it helps, move a sample from the most expensive bin to another one, or exchange two."""
    totals = [sum(costs[i] for i in positions) for positions in bins]
    tokens = [sum(lengths[i] for i in positions) for positions in bins]
    mean = sum(totals) / len(totals)
    for _ in range(4 * len(bins)):
        high = max(range(len(bins)), key=totals.__getitem__)
        if totals[high] <= BALANCED * mean:
            return
        for low in sorted(range(len(bins)), key=totals.__getitem__):
            if exchange := _best_exchange(
                bins[high], bins[low], totals[high] - totals[low], lengths, costs, max_tokens - tokens[low]
            ):
                break
        else:
            return
        given, taken = exchange
        for source, target, moved in ((high, low, given), (low, high, taken)):
            if moved is not None:
                bins[source].remove(moved)
                bins[target].append(moved)
                totals[source], totals[target] = totals[source] - costs[moved], totals[target] + costs[moved]
                tokens[source], tokens[target] = tokens[source] - lengths[moved], tokens[target] + lengths[moved]


def _best_exchange(
    expensive: list[int], cheap: list[int], gap: float, lengths: Sequence[int], costs: Sequence[float], room: int
) -> tuple[int, int | None] | None:
    """Return the sample to move from the expensive bin to the cheap one, and the one to take back, if any.

    After it the costs of the two are as close as one exchange can make them. None: no exchange helps.
    """
    offers = sorted([(0.0, -1), *((costs[i], i) for i in cheap)])
    best: tuple[float, int, int] | None = None
    for i in expensive:
        near = bisect_left(offers, (costs[i] - gap / 2, -1))
        for cost, j in offers[max(0, near - 1) : near + 1]:
            moved, fits = costs[i] - cost, lengths[i] - (lengths[j] if j >= 0 else 0) <= room
            distance = abs(moved - gap / 2)
            if fits and 0 < moved < gap and (best is None or distance < best[0]):
                best = (distance, i, j)
    return (best[1], best[2] if best[2] >= 0 else None) if best else None


def _best_fit(order: Sequence[int], lengths: Sequence[int], num_bins: int, max_tokens: int) -> list[list[int]] | None:
    """Best fit: put each sample into the fullest bin with room. None: a sample has no room."""
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    room = [max_tokens] * num_bins
    for i in order:
        able = [number for number in range(num_bins) if room[number] >= lengths[i]]
        if not able:
            return None
        number = min(able, key=lambda number: (room[number], number))
        bins[number].append(i)
        room[number] -= lengths[i]
    return bins


def cost_ratio(num_layers: int, hidden_size: int, num_parameters: int) -> float:
    """Return the cost of attention over a sample, per squared token, in units of one token's matrix products.

    Matrix products take 2 P operations per token, causal attention 2 L H n^2 per sample of n tokens.
    """
    return num_layers * hidden_size / max(1, num_parameters)
