import pytest
from hub_osft.config import OsftConfig

import hub
from hub import ConfigError, RunConfig, compose
from hub.launch.preflight import with_absolute_paths


def config(*overrides: str) -> RunConfig:
    return compose("algo=osft", "model=tiny", "data=tiny", *overrides)


def test_defaults():
    algo = config().algo
    assert type(algo) is OsftConfig
    assert (algo.ratio, algo.subspace, algo.constraint, algo.parametrization) == (1.0, "activations", "strict", "fast")
    assert algo.strength == 56
    assert (algo.train_embeddings, algo.train_norms, algo.train_head) == (False, False, False)
    assert config().problems() == []


@pytest.mark.parametrize("value", ["all", "attention", "mlp", "[q_proj]", "['layers\\.[01]\\..*proj$']"])
def test_targets_are_a_word_or_patterns(value):
    assert config(f"algo.target_patterns={value}").problems() == []


ADAPTIVE = ["algo.rank_policy=adaptive", "algo.protect_data=tiny:chats"]
WEIGHTS = ["algo.subspace=weights"]
ACTIVATIONS = ["algo.subspace=activations", "algo.protect_data=tiny:chats"]


@pytest.mark.parametrize(
    ("overrides", "ratio", "strength"),
    [
        (["algo.protect_strength=0"], 0.5, 0),
        (["algo.protect_strength=0", "algo.unfreeze_rank_ratio=1"], 1, 0),
        (["algo.protect_strength=10"], 1, 10),
        (["algo.unfreeze_rank_ratio=0.75"], 0.75, 56),
        (WEIGHTS, 0.25, 0),
        ([*WEIGHTS, "algo.rank_policy=adaptive"], 0.25, 0),
    ],
)
def test_more_is_free_where_data_says_what_must_stay(overrides, ratio, strength):
    made = config(*overrides)
    assert made.problems() == []
    assert (made.algo.ratio, made.algo.strength) == (ratio, strength)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["algo.unfreeze_rank_ratio=0"], "algo.unfreeze_rank_ratio=0.0 is not allowed. Allowed: a number above 0 and at"),
        (["algo.unfreeze_rank_ratio=1.5"], "algo.unfreeze_rank_ratio=1.5 is not allowed."),
        (["model.resize_vocab=true"], "the embeddings of new tokens would stay frozen (algo.train_embeddings=false). Type"),
        (["algo.protect_data=no.jsonl", ACTIVATIONS[0]], "algo.protect_data=no.jsonl: there is no such file or folder."),
        (["algo.protect_data=3"], "algo.protect_data=3 is not allowed. Allowed: a file, or a list of files"),
        (["algo.protect_data=[no.jsonl,3]"], "algo.protect_data=['no.jsonl', 3] is not allowed. Allowed: a file, or a list of"),
        ([*WEIGHTS, "algo.protect_data=tiny:chats"], "algo.protect_data has no effect here."),
        (["algo.protect_from=."], "algo.protect_from=.: there is no protected_samples.safetensors and no"),
        ([*WEIGHTS, "algo.protect_strength=10"], "algo.protect_strength needs algo.subspace=activations"),
        ([*ACTIVATIONS, "algo.protect_strength=-1"], "algo.protect_strength=-1.0 is not allowed. Allowed: a number at least 0"),
        ([*WEIGHTS, "algo.save_protection=true"], "algo.save_protection needs algo.subspace=activations"),
        (["algo.target_patterns=q_proj"], "algo.target_patterns=q_proj is not allowed. Allowed: all, attention, mlp, or"),
        (["algo.target_patterns=['(q']"], "algo.target_patterns: (q is not a regular expression"),
        ([*ACTIVATIONS, "algo.constraint=corner"], "algo.constraint=corner is for the directions of weights."),
        ([*ACTIVATIONS, "algo.parametrization=factored"], "algo.parametrization=factored trains singular factors of"),
        ([*WEIGHTS, "algo.parametrization=factored", "algo.offload_base=true"], "algo.offload_base needs algo.parametrization"),
        (["algo.offload_base=true", "launch.strategy=fsdp"], "launch.strategy=fsdp: algo.offload_base=true holds whole base"),
        ([*WEIGHTS, "algo.parametrization=factored", "launch.strategy=fsdp"], "algo.parametrization=factored needs a full"),
        ([*ADAPTIVE, "algo.unfreeze_rank_ratio=0.5"], "algo.rank_policy=adaptive chooses"),
        ([*ADAPTIVE, "algo.min_keep=0.9"], "algo.min_keep=0.9 is above"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_in_one_line(overrides, line):
    cfg = config(*overrides)
    (problem,) = cfg.problems()
    assert problem.startswith(line)
    assert len(with_absolute_paths(cfg).problems()) == 1


@pytest.mark.parametrize(
    ("option", "allowed"), [("unfreeze_rank_ratio=half", "a number or null"), ("train_head=often", "true or")]
)
def test_a_value_of_another_type_is_refused(option, allowed):
    with pytest.raises(ConfigError, match=rf"algo\.{option} is not allowed\. Allowed: {allowed}"):
        config(f"algo.{option}")


def test_the_python_function_takes_the_same_options():
    with pytest.raises(TypeError, match=r"osft has no option 'unfreeze_ratio'\. Did you mean .*unfreeze_rank_ratio"):
        hub.osft(model="tiny", data="tiny", unfreeze_ratio=0.5)
