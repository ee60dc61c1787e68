"""Learning-rate schedules: each against its formula, written here anew, at every step."""

import json
import math
from fractions import Fraction
from itertools import pairwise

import pytest
import torch

from hub.config.schema import AlgoConfig
from hub.errors import ConfigError
from hub.train.optim import make_scheduler, observe_loss, restore_schedule
from hub.train.schedule import rate_of_step, warmup_steps

SCHEDULES = {
    "constant": lambda left, step, peak: 1.0,
    "linear": lambda left, step, peak: float(left),
    "polynomial": lambda left, step, peak: float(left**2),
    "cosine": lambda left, step, peak: math.cos((1 - left) * math.pi / 2) ** 2,
    "inverse_sqrt": lambda left, step, peak: 1 / math.sqrt(step / peak),
    "constant_with_warmup": lambda left, step, peak: 1.0,
}
"""Name -> rate by the part of the decay that is left, as a fraction, by the step, and by the step with the peak."""


def rates(total: int, **options: object) -> list[float]:
    """The learning rate of each step, as the loop sets it."""
    cfg = AlgoConfig(learning_rate=0.5, **options)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=cfg.learning_rate)
    scheduler, found = make_scheduler(cfg, optimizer, total), []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"] / cfg.learning_rate)
        scheduler.step()
    return found


@pytest.mark.parametrize("total", [1, 2, 3, 10])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_follows_its_formula_with_and_without_warmup(name, total):
    for warmup, options in [
        *((steps, {"warmup_steps": steps}) for steps in range(total)),
        *((round(total * ratio), {"warmup_ratio": ratio}) for ratio in (0.0, 0.3, 1.0)),
        (0, {}),
    ]:
        peak = max(1, warmup)
        expected = [step / peak for step in range(1, peak)]
        for step in range(peak, total + 1):
            expected.append(SCHEDULES[name](Fraction(total + 1 - step, total + 1 - peak), step, peak))
        assert rates(total, lr_scheduler=name, **options) == pytest.approx(expected, rel=1e-12)
        assert max(expected) == 1
        assert min(expected) > 0


@pytest.mark.parametrize(("warmup", "cycles", "length"), [(0, 2, 6), (0, 5, 7), (3, 4, 100), (1, 100, 3)])
def test_a_cosine_with_restarts_begins_each_cycle_at_the_peak(warmup, cycles, length):
    once = rates(length, lr_scheduler="cosine", warmup_steps=0)
    total = cycles * length + max(0, warmup - 1)
    found = rates(total, lr_scheduler="cosine_with_restarts", warmup_steps=warmup, lr_num_cycles=cycles)
    assert found == pytest.approx([step / warmup for step in range(1, warmup)] + once * cycles, rel=1e-9)


def test_schedules_of_different_names_differ_without_further_options():
    found = {
        name: tuple(rates(30, warmup_steps=0, lr_scheduler=name))
        for name in (*SCHEDULES, "cosine_with_restarts", "warmup_stable_decay")
    }
    assert found.pop("constant_with_warmup") == found["constant"]
    assert len(set(found.values())) == 7
    assert found["cosine_with_restarts"] == pytest.approx(2 * rates(15, warmup_steps=0, lr_scheduler="cosine"))
    assert rates(1, lr_scheduler="cosine_with_restarts") == [1.0]
    assert rates(9, lr_scheduler="polynomial", lr_power=1.0) == pytest.approx(rates(9, lr_scheduler="linear"))


@pytest.mark.parametrize("name", [*SCHEDULES, "cosine_with_restarts"])
def test_the_floor_raises_the_decay_and_leaves_warmup_as_it_is(name):
    if name.startswith("constant"):
        return
    plain, raised = (rates(10, lr_scheduler=name, warmup_steps=4, min_lr_ratio=floor) for floor in (0.0, 0.25))
    assert raised[:4] == plain[:4] == [0.25, 0.5, 0.75, 1.0]
    assert raised[4:] == pytest.approx([0.25 + 0.75 * rate for rate in plain[4:]])


def test_a_schedule_that_does_not_fit_the_run_is_refused():
    with pytest.raises(ConfigError, match=r"^algo.warmup_steps=10 is not shorter than the run of 10 steps. Type e.g. algo"):
        rates(10, warmup_steps=10)
    with pytest.raises(ConfigError, match=r"^algo.lr_decay_steps=8 does not fit the run of 10 steps, 7 of them from the peak"):
        rates(10, warmup_steps=4, lr_scheduler="warmup_stable_decay", lr_decay_steps=8)
    with pytest.raises(ConfigError, match=r"^algo.lr_num_cycles=8 does not fit the run of 10 steps, 7 of them from the peak"):
        rates(10, warmup_steps=4, lr_scheduler="cosine_with_restarts", lr_num_cycles=8)


def test_the_longest_that_fits_is_not_refused_and_what_is_not_set_is_as_documented():
    assert rates(10, warmup_steps=4, lr_scheduler="cosine_with_restarts", lr_num_cycles=7)[3:] == [1.0] * 7
    assert warmup_steps(AlgoConfig(), 100) == 3
    assert rates(3, lr_scheduler="warmup_stable_decay", lr_decay_type="linear", warmup_steps=0) == [1.0] * 3
    for name, factor in (("reduce_lr_on_plateau", 0.1), ("greedy", 0.95)):
        rate = rate_of_step(AlgoConfig(lr_scheduler=name, warmup_steps=0), 100)
        assert (rate.factor, rate.patience, rate.num_worse, rate.num_better) == (factor, 10, 0, 0)


@pytest.mark.parametrize(("name", "least"), [("reduce_lr_on_plateau", 1e-4), ("greedy", 1e-6)])
def test_a_loss_is_better_if_it_is_lower_by_more_than_the_least_change(name, least):
    for change, best in ((least, 1.0), (1.5 * least, 1.0 - 1.5 * least)):
        rate = rate_of_step(AlgoConfig(lr_scheduler=name, warmup_steps=0), 10)
        for loss in (1.0, 1.0 - change):
            rate.observe(loss)
        assert rate.best == best


@pytest.mark.parametrize("floor", [0.0, 0.2])
@pytest.mark.parametrize("shape", ["cosine", "linear", "1-sqrt"])
@pytest.mark.parametrize(("total", "warmup", "steps"), [(10, 0, 4), (10, 3, 4), (10, 4, 7), (3, 1, 1), (1, 0, 1)])
def test_warmup_stable_decay_is_that_of_transformers_from_the_peak_on(total, warmup, steps, shape, floor):
    from transformers.optimization import get_wsd_schedule

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    # Its warmup begins at 0, so that its peak is a step later.
    reference = get_wsd_schedule(optimizer, max(0, warmup - 1), steps, total, decay_type=shape, min_lr_ratio=floor)
    expected = [reference.lr_lambdas[0](step) for step in range(total)]
    options = {"lr_decay_steps": steps, "lr_decay_type": shape, "min_lr_ratio": floor, "warmup_steps": warmup}
    found = rates(total, lr_scheduler="warmup_stable_decay", **options)
    peak = max(1, warmup)
    assert found[peak - 1 :] == pytest.approx(expected[peak - 1 :], rel=1e-12)
    assert found[: peak - 1] == pytest.approx([step / peak for step in range(1, peak)])


def test_warmup_stable_decay_takes_a_tenth_of_the_run_and_is_a_plain_decay_if_it_takes_all():
    assert rates(40, lr_scheduler="warmup_stable_decay", lr_decay_type="linear", warmup_steps=0)[35:] == pytest.approx(
        [1, 1, 0.75, 0.5, 0.25]
    )
    whole = {"lr_scheduler": "warmup_stable_decay", "lr_decay_type": "linear", "lr_decay_ratio": 1.0}
    assert rates(10, warmup_steps=4, **whole) == pytest.approx(rates(10, warmup_steps=4, lr_scheduler="linear"))


def test_warmup_may_start_above_its_first_part():
    found = rates(10, lr_scheduler="constant", warmup_steps=4, warmup_start_ratio=0.4)
    assert found == pytest.approx([0.4, 0.6, 0.8, *[1.0] * 7])
    for scheduler in ("constant", "greedy"):  # a run too short for warmup
        assert rates(4, lr_scheduler=scheduler, warmup_start_ratio=0.4) == [1.0] * 4
    names = ("cosine_with_min_lr", "cosine_warmup_with_min_lr", "cosine")
    assert len({tuple(rates(10, lr_scheduler=name, min_lr_ratio=0.1)) for name in names}) == 1


LOSSES = [3.0, 2.0, 2.0, 1.9999, 2.5, 1.5, 1.4, 1.3, 1.2, 1.1, 1.1, 1.2, math.nan, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0]


def followed(losses: list[float], **options: object) -> list[float]:
    """The learning rate after each evaluation, as the loop sets it."""
    cfg = AlgoConfig(learning_rate=0.5, warmup_steps=0, **options)
    weights = [torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))]
    optimizer = torch.optim.SGD([{"params": [weight]} for weight in weights], lr=cfg.learning_rate)
    scheduler, found = make_scheduler(cfg, optimizer, 100), []
    for loss in losses:
        scheduler.step()
        before = optimizer.param_groups[0]["lr"]
        changed = observe_loss(scheduler, loss)
        found.append(optimizer.param_groups[1]["lr"])
        assert found[-1] == optimizer.param_groups[0]["lr"] == (changed or before)
        assert (changed is not None) == (before != found[-1])
        resumed = make_scheduler(cfg, optimizer, 100)  # what a checkpoint holds is enough to go on
        restore_schedule(resumed, json.loads(json.dumps(scheduler.state_dict(), allow_nan=False)))
        assert [group["lr"] for group in optimizer.param_groups] == [found[-1]] * 2
        scheduler = resumed
    return found


def test_a_resumed_plateau_has_the_losses_of_then_and_the_options_of_now():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.5)
    adaptive = {"lr_scheduler": "reduce_lr_on_plateau", "warmup_steps": 0, "lr_patience": 0}
    before = make_scheduler(AlgoConfig(learning_rate=0.5, lr_factor=0.5, **adaptive), optimizer, 100)
    for loss in (2.0, 2.0):
        observe_loss(before, loss)
    now = AlgoConfig(learning_rate=0.1, lr_factor=0.1, min_lr_ratio=0.02, **adaptive)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    scheduler = make_scheduler(now, optimizer, 100)
    restore_schedule(scheduler, before.state_dict())
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5)
    assert [observe_loss(scheduler, 2.0) for _ in range(3)] == [pytest.approx(0.1 * 0.05), pytest.approx(0.1 * 0.02), None]


@pytest.mark.parametrize(("patience", "factor", "floor"), [(0, 0.5, 0.0), (1, 0.5, 0.2), (2, 0.1, 0.0)])
def test_the_plateau_is_torchs_through_every_checkpoint(patience, factor, floor):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.5)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=factor, patience=patience, min_lr=0.5 * floor, eps=0
    )
    losses, expected = [loss for loss in LOSSES if math.isfinite(loss)], []
    for loss in losses:
        reference.step(loss)
        expected.append(optimizer.param_groups[0]["lr"])
    options = {"lr_factor": factor, "lr_patience": patience, "min_lr_ratio": floor}
    assert followed(losses, lr_scheduler="reduce_lr_on_plateau", **options) == pytest.approx(expected)
    assert len(set(expected)) > 2


@pytest.mark.parametrize(("patience", "factor", "floor"), [(0, 0.5, 0.1), (1, 0.8, 0.5)])
def test_greedy_is_that_of_transformers_with_the_peak_as_its_bound(patience, factor, floor):
    optimization = pytest.importorskip("transformers.optimization")
    if not hasattr(optimization, "GreedyLR"):
        pytest.skip("this version of transformers has no GreedyLR")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.5)
    bounds = {"min_lr": 0.5 * floor, "max_lr": 0.5}
    reference = optimization.GreedyLR(optimizer, factor=factor, patience=patience, eps=0, **bounds)
    losses, expected = [loss for loss in [*LOSSES, 1.0, 0.9, 0.8, 0.7] if math.isfinite(loss)], []
    for loss in losses:
        reference.step(loss)
        expected.append(optimizer.param_groups[0]["lr"])
    options = {"lr_factor": factor, "lr_patience": patience, "min_lr_ratio": floor}
    assert followed(losses, lr_scheduler="greedy", **options) == pytest.approx(expected)
    assert any(later > rate for rate, later in pairwise(expected))


def test_a_loss_that_is_not_finite_changes_nothing_and_warmup_stays():
    assert followed([1.0, math.nan, math.inf], lr_scheduler="reduce_lr_on_plateau", lr_patience=0) == [0.5] * 3
    rate = rate_of_step(AlgoConfig(lr_scheduler="greedy", warmup_steps=4), 10)
    assert [rate(step) for step in range(1, 6)] == [0.25, 0.5, 0.75, 1.0, 1.0]
