"""What to change if a run does not fit: mild before strong, tried before it is said."""

from dataclasses import dataclass

import pytest

from hub.config.option import option
from hub.config.schema import AlgoConfig, RunConfig
from hub.errors import ConfigError
from hub.plan.fitting import Loses, Tried, changes_of, fixes, smaller_presets

GIB = 2**30
CARD = 24 * GIB


@dataclass(kw_only=True)
class Adapters(AlgoConfig):
    load_in_4bit: bool = False
    precision: str = option("auto", choices=("auto", "fp8"))


@dataclass(kw_only=True)
class Whole(AlgoConfig):
    master_weights: bool = True


@dataclass(kw_only=True)
class Directions(AlgoConfig):
    unfreeze_rank_ratio: float | None = None

    @property
    def ratio(self) -> float:
        return self.unfreeze_rank_ratio or 1.0


class MadeUp:
    """A model of memory: weights, states, and activations that grow with the longest sample."""

    def __init__(self, weights=16.0, states=0.0, activations=10.0, longest=8192):
        self.weights, self.states, self.activations, self.longest = weights, states, activations, longest
        self.asked = []

    def __call__(self, overrides):
        self.asked.append(tuple(overrides))
        values = dict(override.split("=", 1) for override in overrides)
        if "algo.optimizer" in values and "algo.master_weights" in values:
            raise ConfigError("not together")
        weights, states, activations, slower = self.weights, self.states, self.activations, 1.0
        if values.get("algo.load_in_4bit") == "true":
            weights, slower = weights / 3.5, 1.05
        if values.get("algo.master_weights") == "false":
            states /= 2
        if values.get("algo.optimizer") == "adamw_8bit":
            states *= 0.625
        if "data.max_seq_len" in values:
            activations *= int(values["data.max_seq_len"]) / self.longest
        if "plan.gpus" in values:
            weights, states, slower = (
                weights / int(values["plan.gpus"]),
                states / int(values["plan.gpus"]),
                1.1 / int(values["plan.gpus"]),
            )
        if "model" in values:
            weights, states, activations, slower = weights / 4, states / 4, activations / 2, 0.3
        if values.get("algo.gradient_checkpointing") == "auto":
            activations, slower = activations / 8, slower * 1.3
        peak = (weights + states + activations) * GIB
        return Tried(peak, CARD, slower, peak <= CARD)


def config(algo, **model):
    cfg = RunConfig(algo=algo)
    cfg.model.family, cfg.model.notes = model.get("family"), model.get("notes", "")
    return cfg


def found(cfg, model, data=None, fits=0, world=1, algorithms=()):
    return fixes(changes_of(cfg, data, model.longest, fits, world, algorithms), model, world)


def test_the_mildest_comes_first_with_its_price():
    model = MadeUp(weights=16, activations=10)
    said = found(config(Adapters()), model, fits=6000)
    assert [fix.overrides for fix in said] == [
        ("algo.load_in_4bit=true",),
        ("plan.gpus=2", "launch.strategy=fsdp"),
        ("data.max_seq_len=5952",),
    ]
    assert said[0].loses is Loses.ROUNDING
    assert said[0].line == "algo.load_in_4bit=true  (frozen weights in 4 bits (NF4); 5% more time)"
    assert said[1].price == pytest.approx(1.1), "two GPUs for 55 % of the time"
    assert "45% less time" in said[1].line
    four = next(
        fix for fix in found(config(AlgoConfig()), MadeUp(weights=70, activations=2), world=2) if len(fix.overrides) == 2
    )
    assert four.overrides[0] == "plan.gpus=4"
    assert four.price == pytest.approx(4 / 2 * 1.1 / 4), "over the two that were asked for"
    assert all(fix.tried.fits and fix.tried.peak_bytes <= CARD for fix in said)


def test_an_option_that_stands_in_the_way_is_named_first():
    said = found(config(Adapters(gradient_checkpointing="none")), MadeUp(activations=30))
    assert said[0].overrides == ("algo.gradient_checkpointing=auto",)
    assert said[0].loses is Loses.NOTHING
    assert "30% more time" in said[0].line


def test_changes_are_combined_only_where_none_is_enough():
    model = MadeUp(weights=16, states=48, activations=12)
    said = found(config(Whole(gradient_checkpointing="none")), model)
    assert all(len(fix.overrides) <= 2 for fix in said if fix.loses is Loses.HARDWARE)
    model = MadeUp(weights=14, states=15, activations=14)
    said = found(config(Whole(gradient_checkpointing="none")), model)
    assert set(said[0].overrides) == {"algo.gradient_checkpointing=auto", "algo.master_weights=false"}
    assert said[0].loses is Loses.ROUNDING
    assert not any({"algo.optimizer=adamw_8bit", "algo.master_weights=false"} <= set(fix.overrides) for fix in said)
    model = MadeUp(weights=10, states=0, activations=20)
    found(config(Adapters(gradient_checkpointing="none")), model)
    assert not any(len(overrides) > 2 for overrides in model.asked), "one change was enough"


def test_a_smaller_model_of_the_family_is_offered_last():
    cfg = config(Whole(), family="llama", notes="8.0B parameters; Llama 3 template")
    assert smaller_presets(cfg)[0][1] < 8
    assert [size for _, size in smaller_presets(cfg)] == sorted((s for _, s in smaller_presets(cfg)), reverse=True)
    said = found(cfg, MadeUp(weights=60, states=20, activations=8), world=8)
    assert said[-1].loses is Loses.MODEL
    assert said[-1].overrides[0].startswith("model=")
    assert "parameters" in said[-1].what
    assert smaller_presets(config(Whole())) == []


def test_the_share_of_samples_that_a_shorter_length_costs_is_said():
    class Data:
        def share_longer(self, length):
            return 0.031 if length == 5952 else 1.0

    said = found(config(Adapters()), MadeUp(), data=Data(), fits=6000)
    assert "3.1% of them are longer and left out" in next(fix.what for fix in said if fix.loses is Loses.DATA)
    cfg = config(Adapters(max_tokens_per_gpu=8192))
    cfg.data.on_long = "truncate"
    said = found(cfg, MadeUp(), data=Data(), fits=6000)
    fix = next(fix for fix in said if fix.loses is Loses.DATA)
    assert "longer and cut" in fix.what
    assert fix.overrides == ("data.max_seq_len=5952", "algo.max_tokens_per_gpu=5952")


def test_what_the_options_have_already_is_not_offered():
    names = {change.name for change in changes_of(config(Adapters(load_in_4bit=True)), None, 8192, 0, world=8)}
    assert "4-bit" not in names
    assert "gpus" not in names, "8 are asked for"
    cfg = config(Whole(master_weights=False))
    assert not {"master weights", "optimizer"} & {change.name for change in changes_of(cfg, None, 8192, 0, 1)}
    for ratio, offered in ((None, ["0.5", "0.25"]), (0.5, ["0.25"]), (0.25, [])):
        changes = changes_of(config(Directions(unfreeze_rank_ratio=ratio)), None, 8192, 0, 1)
        steps = [words for change in changes if change.name == "directions" for words, _ in change.steps]
        assert steps == [(f"algo.unfreeze_rank_ratio={less}",) for less in offered]
    cfg = config(AlgoConfig(optimizer="adafactor"))
    assert not {"gpus", "optimizer"} & {change.name for change in changes_of(cfg, None, 8192, 0, 1)}


def test_the_search_has_an_end_and_may_find_nothing():
    model = MadeUp(weights=4000, states=4000, activations=4000)
    cfg = config(Whole(gradient_checkpointing="none"), family="llama", notes="80B parameters")
    assert found(cfg, model, fits=100, algorithms=("a", "b")) == []
    assert len(model.asked) <= 24
    assert len(set(model.asked)) == len(model.asked), "nothing is planned twice"
