from dataclasses import fields
from pathlib import Path

import pytest

from hub import AlgoConfig, RunConfig, option
from hub.cli.options_page import page
from hub.config.data import FORMATS
from hub.config.option import field_docs, field_problems, leaves
from hub.config.schema import PARTS, DataConfig, ModelConfig
from hub.data.formats.detect import _FORMATS
from hub.plugins.registry import registry

ALGORITHMS = registry().algorithms


def config(**parts: dict[str, object]) -> RunConfig:
    """A config without problems, with these options changed."""
    cfg = RunConfig(algo=ALGORITHMS["sft"].config(), model=ModelConfig(path="tiny:llama"), data=DataConfig(path="x.jsonl"))
    for part, values in parts.items():
        for name, value in values.items():
            setattr(getattr(cfg, part), name, value)
    return cfg


def test_the_config_to_begin_from_has_no_problems():
    assert config().problems() == []


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({"algo": {"learning_rate": float("nan")}}, "algo.learning_rate=nan is not allowed. Allowed: a number above 0"),
        ({"algo": {"learning_rate": float("inf")}}, "algo.learning_rate=inf is not allowed"),
        ({"algo": {"learning_rate": 0.0}}, "algo.learning_rate=0.0 is not allowed"),
        ({"algo": {"weight_decay": -0.1}}, "algo.weight_decay=-0.1 is not allowed. Allowed: a number at least 0"),
        ({"algo": {"max_steps": 0}}, "algo.max_steps=0 is not allowed"),
        ({"algo": {"adam_beta1": 1.0}}, "algo.adam_beta1=1.0 is not allowed. Allowed: a number at least 0 and below 1"),
        (
            {"algo": {"seed": 2**32}},
            "algo.seed=4294967296 is not allowed. Allowed: a number at least 0 and at most 4294967295",
        ),
        (
            {"algo": {"effective_batch_size": "atuo"}},
            "algo.effective_batch_size=atuo is not allowed. Allowed: a number",
        ),
        ({"algo": {"effective_batch_size": True}}, "algo.effective_batch_size=True is not allowed"),
        ({"algo": {"lr_scheduler": "cosin"}}, "algo.lr_scheduler=cosin is not allowed. Allowed: linear, cosine,"),
        ({"algo": {"warmup_steps": 5, "warmup_ratio": 0.1}}, "algo.warmup_steps and algo.warmup_ratio are both set"),
        ({"algo": {"warmup_steps": 5, "max_steps": 5}}, "algo.warmup_steps=5 is not shorter than the run"),
        (
            {"algo": {"lr_num_cycles": 3}},
            "algo.lr_num_cycles=3 needs algo.lr_scheduler=cosine_with_restarts, but it is cosine.",
        ),
        (
            {"algo": {"lr_scheduler": "cosine_with_restarts", "lr_num_cycles": 9, "max_steps": 8}},
            "algo.lr_num_cycles=9 is above algo.max_steps=8: a cycle takes at least one step.",
        ),
        (
            {"algo": {"lr_scheduler": "greedy"}},
            "algo.lr_scheduler=greedy follows the held-out loss, but no evaluation is due during training. Type e.g.",
        ),
        (
            {"algo": {"lr_scheduler": "cosine_with_min_lr"}},
            "algo.lr_scheduler=cosine_with_min_lr needs algo.min_lr_ratio above 0",
        ),
        (
            {"algo": {"lr_scheduler": "warmup_stable_decay", "lr_decay_steps": 2, "lr_decay_ratio": 0.5}},
            "algo.lr_decay_steps and algo.lr_decay_ratio are both set. Set one of them, the other to null.",
        ),
        ({"algo": {"lr_patience": 2}}, "algo.lr_patience=2 needs algo.lr_scheduler=reduce_lr_on_plateau or greedy, but it is"),
        ({"algo": {"lr_power": 2.0}}, "algo.lr_power=2 needs algo.lr_scheduler=polynomial, but it is cosine. Type that, or"),
        (
            {"algo": {"lr_scheduler": "constant", "min_lr_ratio": 0.1}},
            "algo.min_lr_ratio=0.1 is where the learning rate decays to, but algo.lr_scheduler=constant does not decay.",
        ),
        ({"algo": {"eval_every_steps": 5}}, "algo.eval_every_steps=5 but there is no evaluation set"),
        ({"model": {"path": ""}}, "No model is chosen"),
        ({"model": {"dtype": "float16"}}, "model.dtype=float16 is not allowed. Allowed: auto, bfloat16, float32."),
        ({"data": {"path": ""}}, "No training data is set"),
        ({"data": {"eval_fraction": 1.0}}, "data.eval_fraction=1.0 is not allowed"),
        (
            {"data": {"eval_path": "y.jsonl", "eval_fraction": 0.1}},
            "data.eval_path and data.eval_fraction are both set",
        ),
        ({"data": {"template": "no.jinja"}}, "data.template=no.jinja: there is no such file"),
        ({"launch": {"mode": "inline", "nproc_per_node": 2}}, "launch.mode=inline runs in this process only"),
        ({"launch": {"mode": "inline", "python": "/bin/sh"}}, "launch.mode=inline runs in this interpreter"),
        ({"launch": {"nnodes": 2}}, "launch.nnodes is above 1. Type launch.rdzv_endpoint=HOST:PORT"),
        ({"launch": {"rdzv_endpoint": "host"}}, "launch.rdzv_endpoint=host is not of the form HOST:PORT"),
        ({"launch": {"rdzv_timeout_seconds": 9.0}}, "launch.rdzv_timeout_seconds=9 is for several machines that wait for each"),
        ({"launch": {"python": "/no/python"}}, "launch.python=/no/python: there is no such interpreter"),
        (
            {"track": {"tool": "wandbb"}},
            "track.tool=wandbb is not allowed. Allowed: none, tensorboard, wandb, mlflow, trackio,",
        ),
    ],
)
def test_what_makes_no_sense_is_one_line(parts, text):
    problems = config(**parts).problems()
    assert len(problems) == 1
    assert problems[0].startswith(text)


def test_all_problems_are_found_at_once():
    cfg = config(algo={"max_steps": 0}, model={"path": ""}, data={"eval_fraction": -1.0}, launch={"nnodes": 2})
    assert len(cfg.problems()) == 4
    cfg.run_name = "a/b"
    assert "run_name='a/b' is not the name of a folder" in cfg.problems()[-1]
    assert len(RunConfig().problems()) == 3  # no algorithm, no model, no data


def test_a_part_in_doubt_is_checked_for_bounds_only():
    cfg = config(data={"path": ""}, algo={"seed": -1})
    assert cfg.problems(parts=("algo",)) == [cfg.problems()[0]]


def test_a_number_without_bounds_must_be_finite():
    class Plain(AlgoConfig):
        pass

    algo = Plain()
    algo.learning_rate = float("-inf")
    assert len(list(field_problems(algo, "algo"))) == 1
    assert option(None, ge=0).metadata["ge"] == 0


@pytest.mark.parametrize("value", [None, "auto", 7])
def test_null_and_auto_are_exempt_from_bounds_where_they_are_defaults(value):
    names = {None: "max_grad_norm", "auto": "max_tokens_per_gpu", 7: "max_tokens_per_gpu"}
    assert config(algo={names[value]: value}).problems() == []


def test_every_option_has_a_meaning_of_its_own():
    for algorithm in ALGORITHMS.values():
        cfg = RunConfig(algo=algorithm.config())
        for name, _, _, meaning in leaves(cfg):
            assert meaning.endswith((".", "?")), name
    for part in PARTS:
        cls = type(getattr(RunConfig(), part))
        assert set(field_docs(cls)) == {item.name for item in fields(cls)}


def test_the_page_of_options_is_up_to_date():
    written = Path(__file__).parents[2] / "docs" / "options.md"
    assert written.read_text(encoding="utf-8") == page(["sft", "lora_sft", "osft", "dpo", "lora_dpo", "osft_dpo"]), (
        "run: python -m hub.cli.options_page, see the page"
    )


def test_the_config_and_the_converters_know_the_same_data_formats():
    assert {*_FORMATS, "document"} == set(FORMATS)
