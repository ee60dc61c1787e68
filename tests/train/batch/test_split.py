"""Steps and micro-batches. The code is pure Python, so every property can be checked exactly."""

import random
from types import SimpleNamespace

import pytest

from hub.config.schema import AlgoConfig
from hub.data.samples.mix import single
from hub.train.batch.split import epoch_order, num_steps, split, steps
from hub.train.setup.samples import length_lines


def ragged(count: int, seed: int = 0, longest: int = 200) -> list[int]:
    rng = random.Random(seed)
    return [rng.randint(1, longest) for _ in range(count)]


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("bound", [200, 300, 1000, 10**6])
def test_split_uses_each_sample_once_within_the_bound_and_gives_all_ranks_as_many_micro_batches(world, bound):
    lengths = ragged(37)
    parts = split(lengths, world, bound, ratio=1e-3)
    assert len(parts) == world
    assert len({len(part) for part in parts}) == 1
    assert sorted(i for part in parts for micro in part for i in micro) == list(range(37))
    assert all(sum(lengths[i] for i in micro) <= bound for part in parts for micro in part)


def test_split_takes_no_more_micro_batches_than_the_tokens_need_by_much():
    lengths = ragged(256, seed=1)
    least = -(-sum(lengths) // 1000)
    assert len(split(lengths, 1, 1000)[0]) <= least + 1


@pytest.mark.parametrize("world", [1, 2, 4])
def test_micro_batches_are_as_few_as_possible_when_filling_them_one_by_one_keeps_the_ranks_balanced(world):
    rng = random.Random(3)
    least = taken = 0
    for _ in range(40):
        lengths = [min(3000, int(rng.lognormvariate(7, 0.6))) for _ in range(128)]
        parts = split(lengths, world, 8192, ratio=1e-5)
        assert sorted(i for part in parts for micro in part for i in micro) == list(range(128))
        totals = [sum(lengths[i] for micro in part for i in micro) for part in parts]
        assert max(totals) * world / sum(totals) < 1.06
        least += -(-sum(lengths) // (world * 8192))
        taken += len(parts[0])
    assert taken <= 1.01 * least


def test_ranks_get_balanced_costs_although_attention_is_quadratic():
    lengths = [*ragged(128, seed=2), 900, 850, 800]
    ratio = 1 / 500
    parts = split(lengths, 4, 4000, ratio)
    for turn in range(len(parts[0])):
        costs = [sum(lengths[i] + ratio * lengths[i] ** 2 for i in part[turn]) for part in parts]
        assert max(costs) / (sum(costs) / 4) < 1.05


def test_fewer_samples_than_ranks_leave_empty_micro_batches_but_no_rank_without_one():
    assert split([5, 9, 7], 4, 100) == [[[1]], [[2]], [[0]], [[]]]


def test_a_sample_above_the_bound_is_refused():
    with pytest.raises(ValueError, match="201 tokens"):
        split([10, 201], 1, 200)


def test_every_epoch_sees_every_sample_once_in_an_order_of_its_own_and_the_last_step_keeps_the_rest():
    found = list(steps(single(10), batch_size=4, total=6, seed=1))
    assert [len(step.samples) for step in found] == [4, 4, 2, 4, 4, 2]
    first, second = (sum((step.samples for step in found if step.epoch == epoch), ()) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_steps_after_a_given_one_are_those_of_the_whole_run():
    whole = list(steps(single(23), batch_size=5, total=14, seed=7))
    assert list(steps(single(23), batch_size=5, total=14, seed=7, after=9)) == whole[9:]


def test_the_order_depends_on_seed_and_epoch_only():
    assert epoch_order(5, seed=42, epoch=0) == [4, 1, 0, 3, 2]
    assert epoch_order(100, 1, 0) != epoch_order(100, 2, 0) != epoch_order(100, 1, 1)


@pytest.mark.parametrize(
    ("samples", "batch", "epochs", "most", "expected"),
    [
        (10, 4, 1, None, 3),
        (10, 4, 2, None, 6),
        (10, 4, 0.5, None, 2),
        (10, 4, 3, 2, 2),
        (10, 4, 1, 20, 20),
        (3, 16, 0.1, None, 1),
    ],
)
def test_number_of_steps(samples, batch, epochs, most, expected):
    assert num_steps(samples, batch, epochs, most) == expected


@pytest.mark.parametrize(
    ("most", "epochs", "lines"), [(None, 3, []), (6, 2, []), (20, 2, ["20: 6.80 passes"]), (4, 1, ["4: 1.40 passes"])]
)
def test_a_run_that_max_steps_makes_longer_than_its_epochs_says_how_many_passes_it_makes(most, epochs, lines):
    algo = AlgoConfig(max_steps=most, num_epochs=epochs)
    source = SimpleNamespace(mix=single(10), batch_size=4, total=num_steps(10, 4, epochs, most))
    logged = length_lines(source, algo)
    assert len(logged) == len(lines)
    assert all(line.startswith(f"algo.max_steps={words}") for line, words in zip(logged, lines, strict=True))


def test_a_step_can_be_cut_into_more_micro_batches_than_it_needs():
    assert [len(part) for part in split([5, 5, 5, 5, 5, 5, 5, 5], 2, 1000, least=3)] == [3, 3]


@pytest.mark.parametrize("world", [1, 2, 8])
def test_micro_batches_of_real_lengths_are_filled_alike(world):
    rng = random.Random(5)
    for _ in range(20):
        lengths = [min(4000, int(rng.lognormvariate(6, 0.9))) for _ in range(128)]
        parts = split(lengths, world, 8192, ratio=1e-5)
        tokens = [sum(lengths[i] for i in micro) for part in parts for micro in part]
        assert sum(tokens) >= 0.97 * max(tokens) * len(tokens)
