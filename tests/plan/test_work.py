"""Steps, seconds, disk and price of a run."""

from fractions import Fraction

import pytest

from hub.config.schema import RunConfig
from hub.data.samples.mix import Mix
from hub.errors import ConfigError
from hub.plan.data_tokens import DataTokens
from hub.plan.speed import Speed
from hub.plan.work import cost_of, disk_of, export_bytes, first_step_seconds, work_of
from hub.system.known_gpus import shipped_gpus


def tokens(num_units=1000, error=0.0, **values):
    mix = Mix(("data",), (num_units,), (Fraction(1),), num_units)
    known = {"tokens_per_unit": 500.0, "lengths": (500,), "population": (500,), "longest": 500, "limit": None, "num_rows": 1000}
    return DataTokens(mix=mix, error=error, **known | values)


def config(**algo):
    cfg = RunConfig()
    for name, value in algo.items():
        setattr(cfg.algo, name, value)
    return cfg


def speed(per_second=10_000.0):
    return Speed(
        low=0.9 * per_second, middle=per_second, high=1.1 * per_second, limit="products", measured=True,
        flops_per_token=1.0, share_of_peak=0.4, because="",
    )  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"num_epochs": 2.5}, {"max_steps": 100}, {"effective_batch_size": "auto"}])
def test_steps_and_tokens_are_those_that_the_run_draws(options):
    from hub.data.samples.mix import single
    from hub.train.batch.split import num_steps, steps
    from hub.train.setup.samples import effective_batch_size

    cfg = config(**options)
    work = work_of(cfg, tokens(), world=2)
    batch = effective_batch_size(cfg.algo.effective_batch_size, 1000, 2)
    total = num_steps(1000, batch, cfg.algo.num_epochs, cfg.algo.max_steps)
    drawn = sum(step.size for step in steps(single(1000), batch, total, seed=0))
    assert (work.num_steps, work.batch_size) == (total, batch)
    assert work.num_tokens[1] == pytest.approx(drawn * 500)
    assert work.num_passes == pytest.approx(drawn / 1000)


def test_the_error_of_the_data_and_of_the_speed_widen_the_seconds():
    work = work_of(config(), tokens(error=0.05), world=1)
    cost = cost_of(work, speed(), shipped_gpus()["h100"], 1, (30, 40, 60), frozen=True, price_per_hour=3.0)
    low, middle, high = cost.total
    steps = 500_000 * (1 - 1 / work.num_steps)
    assert middle == pytest.approx(40 + steps / 10_000)
    assert low == pytest.approx(30 + 0.9 * steps / 11_000)
    assert high == pytest.approx(60 + 1.1 * steps / 9_000)
    assert cost.price[1] == pytest.approx(3.0 * middle / 3600)
    assert cost.kilowatt_hours[1] == pytest.approx(0.7 * middle / 3600)
    both = cost_of(work, speed(), shipped_gpus()["h100"], 2, (30, 40, 60), True, price_per_hour=3.0, price_per_kwh=0.5)
    assert both.price[1] == pytest.approx(2 * (3.0 + 0.5 * 0.7) * middle / 3600)


def test_evaluations_take_time_too():
    with_evaluation = work_of(config(eval_every_steps=10), tokens(num_eval_tokens=5000), world=1)
    assert with_evaluation.num_eval_tokens == (2 + with_evaluation.num_steps // 10) * 5000
    assert work_of(config(), tokens(), world=1).num_eval_tokens == 0


def test_the_seconds_to_the_first_step_hold_what_was_measured():
    for weight_bytes, step_seconds, measured in (
        (4.9e9, 0.3, 16.4),
        (2.5e9, 0.2, 20.1),
        (2.5e9, 0.3, 19.7),
        (1.2e9, 0.2, 27.4),
        (16e9, 1.0, 35.9),
        (5.7e9, 0.6, 20.5),
    ):
        low, middle, high = first_step_seconds(weight_bytes, True, step_seconds)
        assert low <= measured <= high, (weight_bytes, low, middle, high)
    assert first_step_seconds(16e9, True, 1.0, learned=[20, 22, 90])[1] == 22


def test_disk_is_what_the_run_asks_for():
    saving = config(save_every_steps=5, keep_checkpoints=3).algo
    disk = disk_of(saving, 1000, is_adapter=True, itemsize=2)
    assert (disk.model, disk.checkpoint, disk.num_checkpoints) == (4000, 16000, 5)
    assert disk.total == 4000 + 5 * 16000
    assert disk_of(config().algo, 1000, is_adapter=False, itemsize=2).total == 2000
    cfg = RunConfig()
    cfg.export.to, cfg.export.quant = ["merged", "gguf"], ["q4_k_m", "q8_0"]
    assert export_bytes(cfg.export, 10**9) == pytest.approx(2e9 + 0.6125e9 + 1.0625e9)


def test_a_batch_below_the_number_of_processes_is_refused_as_in_a_run():
    with pytest.raises(ConfigError, match="below the number of processes"):
        work_of(config(effective_batch_size=4), tokens(), world=8)
