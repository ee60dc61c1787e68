"""Learning-rate schedules: each against its formula, written here anew, at every step."""

import math
from fractions import Fraction

import pytest
import torch

from hub.config.schema import AlgoConfig
from hub.errors import ConfigError
from hub.train.optim import make_scheduler

SCHEDULES = {
    "constant": lambda left, step, peak: 1.0,
    "linear": lambda left, step, peak: float(left),
    "polynomial": lambda left, step, peak: float(left**2),
    "cosine": lambda left, step, peak: math.cos((1 - left) * math.pi / 2) ** 2,
    "inverse_sqrt": lambda left, step, peak: 1 / math.sqrt(step / peak),
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
    found = {name: tuple(rates(10, lr_scheduler=name)) for name in (*SCHEDULES, "cosine_with_restarts")}
    assert len(set(found.values())) == 6
    assert found["cosine_with_restarts"] == pytest.approx(2 * rates(5, lr_scheduler="cosine"))
    assert rates(1, lr_scheduler="cosine_with_restarts") == [1.0]
    assert rates(9, lr_scheduler="polynomial", lr_power=1.0) == pytest.approx(rates(9, lr_scheduler="linear"))


@pytest.mark.parametrize("name", [*SCHEDULES, "cosine_with_restarts"])
def test_the_floor_raises_the_decay_and_leaves_warmup_as_it_is(name):
    if name == "constant":
        return
    plain, raised = (rates(10, lr_scheduler=name, warmup_steps=4, min_lr_ratio=floor) for floor in (0.0, 0.25))
    assert raised[:4] == plain[:4] == [0.25, 0.5, 0.75, 1.0]
    assert raised[4:] == pytest.approx([0.25 + 0.75 * rate for rate in plain[4:]])


def test_a_schedule_that_does_not_fit_the_run_is_refused():
    with pytest.raises(ConfigError, match=r"^algo.warmup_steps=10 is not shorter than the run of 10 steps. Type e.g. algo"):
        rates(10, warmup_steps=10)
    with pytest.raises(ConfigError, match=r"^algo.lr_num_cycles=8 does not fit the run of 10 steps, 7 of them from the peak"):
        rates(10, warmup_steps=4, lr_scheduler="cosine_with_restarts", lr_num_cycles=8)
