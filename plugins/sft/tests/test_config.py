import pytest
from hub_sft.config import SftConfig

from hub import compose


def test_defaults_are_those_of_whole_models():
    algo = compose("algo=sft").algo
    assert type(algo) is SftConfig
    assert (algo.learning_rate, algo.num_epochs, algo.effective_batch_size) == (5e-6, 2.0, "auto")


@pytest.mark.parametrize("value", [0, -1, "many"])
def test_the_batch_is_a_number_or_auto(value):
    cfg = compose("algo=sft", "model=tiny", "data=tiny", values={"algo": {"effective_batch_size": value}})
    line = f"algo.effective_batch_size={value} is not allowed. Allowed: a number at least 1 or auto"
    assert cfg.problems() == [line]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["algo.optimizer=adamw_8bit"], "algo.master_weights=false with algo.optimizer=adamw_8bit: it rounds to the nearest"),
        (["algo.optimizer=sgd"], "algo.master_weights=false with algo.optimizer=sgd: it rounds to the nearest"),
        (["launch.strategy=zero2"], "algo.master_weights=false with launch.strategy=zero2: DeepSpeed keeps float32"),
        (["model.dtype=float32"], "algo.master_weights=false keeps the weights in model.dtype, which is float32"),
        (["launch.strategy=fsdp"], None),
        (["task=verify", "model.dtype=float32"], None),
    ],
)
def test_weights_in_bfloat16_are_refused_where_they_would_lose_small_steps(options, line):
    found = compose("algo=sft", "model=tiny", "data=tiny", "algo.master_weights=false", *options).problems()
    assert [problem[: len(line or "")] for problem in found] == ([line] if line else [])
    assert compose("algo=sft", "model=tiny", "data=tiny", *options).problems() == []


@pytest.mark.parametrize("other", ["model.dtype=float32", "launch.strategy=split"])
def test_what_can_not_be_in_fp8_is_refused(other):
    found = compose("algo=sft", "model=tiny", "data=tiny", "algo.precision=fp8", other).problems()
    assert found == [f"algo.precision=fp8 can't be combined with {other}. Type algo.precision=auto, or leave the other out"]


@pytest.mark.parametrize("option", ["launch.strategy=fsdp", "launch.strategy=zero3", "algo.master_weights=false"])
def test_fp8_goes_with_shares_and_weights_in_bfloat16(option):
    assert compose("algo=sft", "model=tiny", "data=tiny", "algo.precision=fp8", option).problems() == []


def test_fp8_is_not_verified():
    (line,) = compose("algo=sft", "model=tiny", "data=tiny", "algo.precision=fp8", "task=verify").problems()
    assert line.startswith("algo.precision=fp8 can't be verified")
