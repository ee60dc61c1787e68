"""Proportions of a mix are exact: fractions are compared, never floating point."""

import random
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from hub.config.data import DataConfig, DataSource
from hub.config.schema import RunConfig
from hub.data.samples.mix import eval_source_of, make_mix, num_held_out, single, source_names, sources_of
from hub.data.samples.sample import Group, Sample, fingerprint
from hub.parallel.group import Group as Ranks
from hub.train.batch.split import num_steps, step_sizes, steps
from hub.train.setup.samples import StreamedSource


def sources(*options: dict) -> list[DataSource]:
    return [DataSource(path=f"{number}.jsonl", **values) for number, values in enumerate(options)]


def mix_of(sizes, *options):
    return make_mix(sources(*options), sizes)


def test_weights_that_divide_the_batch_give_every_step_the_same_composition():
    mix = mix_of([1000, 10], {"weight": 0.7}, {"weight": 0.3})
    assert mix.shares == (Fraction(7, 10), Fraction(3, 10))
    assert set(mix.counts([10] * 200)) == {(7, 3)}
    assert mix.per_pass == 1429


def test_what_a_step_has_left_over_goes_to_the_source_that_is_most_behind_and_of_equals_to_the_first():
    thirds = mix_of([None] * 3, {"weight": 1}, {"weight": 1}, {"weight": 1})
    assert list(thirds.counts([4, 4, 4, 5])) == [(2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 1)]
    assert thirds.drawn([4, 4]) == [3, 3, 2]
    uneven = mix_of([None] * 3, {"weight": 5}, {"weight": 3}, {"weight": 2})
    assert list(uneven.counts([1] * 10)) == [
        (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0), (1, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0),
    ]  # fmt: skip
    behind = mix_of([None] * 3, {"weight": 3}, {"weight": 2}, {"weight": 1})
    assert list(behind.counts([5, 2])) == [(2, 2, 1), (1, 1, 0)], "half of 2 is whole, so the first source gets no more"


def test_in_whole_passes_no_source_gives_more_than_it_has_before_the_end_of_a_pass():
    mix = mix_of([5, 1], {}, {})
    assert list(mix.counts([4, 2, 4, 2])) == [(3, 1), (2, 0), (3, 1), (2, 0)]
    with pytest.raises(ValueError, match="beyond the end of a pass"):
        list(mix.counts([4, 3]))
    of_which_one_is_whole = mix_of([2, 9, 9], {"weight": 3}, {"weight": 2}, {"weight": 1})
    assert of_which_one_is_whole.per_pass == 4
    assert list(of_which_one_is_whole.counts([4])) == [(2, 1, 1)]


def test_a_pass_over_one_source_is_its_units_times_its_epochs_and_one_at_least():
    (half, none, many) = (mix_of([size], {"epochs": epochs}) for size, epochs in ((1, 0.3), (None, 2), (4, 2.5)))
    assert (half.per_pass, none.per_pass, many.per_pass) == (1, None, 10)
    assert many.sizes == (4,)
    assert many.shares == (1,)
    assert mix_of([7], {}).per_pass == 7


def test_a_pass_is_never_empty():
    assert mix_of([1, 1], {"weight": 1, "epochs": 0.1}, {"weight": 1}).per_pass == 1
    assert mix_of([0, 0], {}, {}).per_pass == 1
    assert mix_of([None, 5], {}, {}).shares == (0, 1)
    assert mix_of([None, 9], {"weight": 2}, {"weight": 1}).per_pass is None


def test_sources_take_what_the_data_has_unless_they_have_their_own():
    data = DataConfig(
        path="p", format="messages", subset="s", split="all", num_rows=3, columns={"a": "b"},
        eval_path="e", eval_split="test",
    )  # fmt: skip
    (one,) = sources_of(data)
    common = {"format": "messages", "columns": {"a": "b"}}
    assert one == DataSource(path="p", subset="s", split="all", num_rows=3, **common)
    assert eval_source_of(data) == DataSource(path="e", split="test", **common)
    assert eval_source_of(replace(data, eval_path=None)) is None
    own = DataSource(path="x", format="text", columns={"c": "d"})
    mixed = replace(data, mix=[DataSource(path="y"), own])
    assert sources_of(mixed) == [DataSource(path="y", **common), own]


@pytest.mark.parametrize("seed", range(8))
def test_each_step_has_the_whole_numbers_next_to_its_shares_and_the_run_stays_on_them(seed):
    rng = random.Random(seed)
    weights = [rng.randint(1, 100) for _ in range(rng.choice((2, 3, 5, 9)))]
    mix = mix_of([100] * len(weights), *({"weight": weight} for weight in weights))
    given, total = [0] * len(weights), 0
    for size, counts in zip(sizes := [*[7] * 200, 3], mix.counts(sizes), strict=True):
        assert sum(counts) == size
        total += size
        given = [have + count for have, count in zip(given, counts, strict=True)]
        assert all(abs(count - share * size) < 1 for count, share in zip(counts, mix.shares, strict=True))
        assert all(abs(have - share * total) < 2 for have, share in zip(given, mix.shares, strict=True))


def test_a_pass_ends_with_the_source_of_the_largest_weight_or_the_one_that_has_epochs():
    assert mix_of([100, 400], {"weight": 1}, {"weight": 3}).per_pass == 533
    assert mix_of([100, 400], {"weight": 1}, {"weight": 1}).per_pass == 200
    assert mix_of([100, 400], {"weight": 1, "epochs": 2}, {"weight": 3}).per_pass == 800


def test_epochs_alone_give_each_source_exactly_its_passes():
    mix = mix_of([30, 7, 100], {"epochs": 2}, {"epochs": 3}, {"epochs": 0.5})
    assert mix.per_pass == 60 + 21 + 50
    drawn = [index for step in steps(mix, 8, num_steps(mix.per_pass, 8, 1, None), seed=1) for index in step.samples]
    parts = [range(30), range(30, 37), range(37, 137)]
    times = [sorted(drawn.count(index) for index in part) for part in parts]
    assert times == [[2] * 30, [3] * 7, [0] * 50 + [1] * 50]


def test_whole_passes_come_out_even_where_the_last_step_has_to_make_good_more_than_a_sample():
    sizes = [20, 2, 20, 2, 3, 1, 100, 50, 100, 1, 1, 1]
    mix = mix_of(sizes, *({} for _ in sizes))
    assert mix.drawn(step_sizes(mix.per_pass, 3, -(-sum(sizes) // 3))) == sizes


def test_sources_without_weights_are_all_seen_once():
    mix = mix_of([30, 7], {}, {})
    assert sorted(i for step in steps(mix, 5, num_steps(37, 5, 1, None), seed=3) for i in step.samples) == list(range(37))


def test_a_source_is_passed_over_again_in_another_order():
    mix = mix_of([1000, 10], {"weight": 1}, {"weight": 1})
    drawn = [i - 1000 for step in steps(mix, 4, 20, seed=1) for i in step.samples if i >= 1000]
    assert sorted(drawn[:10]) == sorted(drawn[10:20]) == list(range(10))
    assert drawn[:10] != drawn[10:20]


def test_steps_after_a_given_one_are_those_of_the_whole_run():
    mix = mix_of([23, 11], {"weight": 0.7}, {"weight": 0.3})
    whole = list(steps(mix, 5, 40, seed=7))
    assert list(steps(mix, 5, 40, seed=7, after=17)) == whole[17:]


def sample(*ids: int, loss: int = 1) -> Sample:
    return Sample(np.array(ids, np.int32), np.arange(len(ids)) >= loss, "it.jsonl:1")


def test_the_fingerprint_of_data_sees_tokens_masks_order_and_edges():
    pair = Group((replace(sample(1, 2), role="chosen"), replace(sample(3, 4), role="rejected")), "it.jsonl:1")
    data = [
        [sample(1, 2, 3, 4), sample(5, 6)],
        [sample(1, 2, 3, 4), sample(5, 7)],
        [sample(1, 2, 3, 4, loss=2), sample(5, 6)],
        [sample(1, 2, 3, 4), sample(5, 6, loss=0)],
        [sample(5, 6), sample(1, 2, 3, 4)],
        [sample(1, 2, 3), sample(4, 5, 6)],
        [sample(1, 2, 3, 4)],
        [sample(1, 2), sample(3, 4)],
        [pair],
        [Group(tuple(replace(one, role=role) for one, role in zip(pair.samples, ("rejected", "chosen"), strict=True)), "")],
    ]
    assert len({fingerprint(units) for units in data}) == len(data)
    assert fingerprint(data[0]) == fingerprint([replace(one, where="other.jsonl:9") for one in data[0]])


def test_the_fingerprint_of_streams_sees_every_source_and_the_longest_length(tmp_path):
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    cfg = RunConfig(data=DataConfig(mix=[DataSource(path=str(file)) for file in files], streaming=True))
    cfg.algo.effective_batch_size, cfg.algo.max_steps = 4, 5
    mix = mix_of([10, 10], {"weight": 1}, {"weight": 1})

    def found(first: str, second: str, limit: int, *units: Sample) -> str:
        for file, text in zip(files, (first, second), strict=True):
            file.write_text(text)
        data = SimpleNamespace(mix=mix, train=list(units), limit=limit)
        return StreamedSource(cfg, data, Ranks(1, 2, 1, None), tmp_path).fingerprint

    several = [
        found("a", "b", 100, sample(1, 2)),
        found("A", "b", 100, sample(1, 2)),
        found("a", "B", 100, sample(1, 2)),
        found("a", "b", 101, sample(1, 2)),
        found("a", "b", 100, sample(1, 3)),
    ]
    assert len(set(several)) == len(several)
    assert found("a", "b", 100, sample(1, 2)) == several[0]


@pytest.mark.parametrize(
    ("rows", "fraction", "number"),
    [(10, 0.0, 0), (10, 0.1, 1), (10, 0.26, 3), (10, 0.01, 1), (10, 0.99, 9), (2, 0.9, 1), (2, 0.1, 1), (1000, 0.005, 5)],
)
def test_the_evaluation_set_has_its_fraction_of_the_rows_at_least_one_and_never_all(rows, fraction, number):
    assert num_held_out(rows, fraction) == number


def test_one_source_is_a_mix_of_one():
    assert list(step_sizes(10, 4, 6)) == [4, 4, 2, 4, 4, 2]
    assert [step.counts for step in steps(single(10), 4, 3, 1)] == [(4,), (4,), (2,)]


def test_names_are_those_of_the_files_and_no_two_are_alike():
    named = [DataSource(path=path) for path in ("x/a.jsonl", "y/a.jsonl", "org/chats", "in/**/*.jsonl")] + [
        DataSource(path="z", name="mine"), DataSource(path="*.jsonl"),
    ]  # fmt: skip
    assert source_names(named) == ("a", "a-2", "chats", "in", "mine", "*.jsonl")


@pytest.mark.parametrize(
    ("mix", "line"),
    [
        ([{"weight": -1}], "data.mix[0].weight=-1 is not allowed. Allowed: a number at least 0"),
        ([{"weight": float("nan")}], "data.mix[0].weight=nan is not allowed"),
        ([{"epochs": 0}], "data.mix[0].epochs=0 is not allowed. Allowed: a number above 0"),
        ([{"weight": 0}, {"weight": 0}], "data.mix: all weights are 0"),
        ([{"weight": 1}, {}], "data.mix[1] has no weight, but others have"),
        ([{"weight": 1, "epochs": 1}, {"weight": 1, "epochs": 2}], "data.mix: several sources have both weight and epochs"),
        ([{"weight": 1}, {"weight": 0, "epochs": 2}], "data.mix[1] has epochs=2 and weight=0"),
        ([{"name": "a"}, {"name": "a"}], "data.mix: two sources have the name a"),
        ([{"path": ""}], "data.mix[0] has no path"),
        ([{"num_rows": 5}], "data.mix[0].num_rows=5 needs data.streaming=true. Rows in memory are counted"),
    ],
)
def test_a_mix_that_makes_no_sense_is_one_line(mix, line):
    data = DataConfig(mix=[DataSource(**{"path": "a.jsonl"} | values) for values in mix])
    problems = list(RunConfig(data=data).data_problems())
    assert len(problems) == 1
    assert problems[0].startswith(line)
