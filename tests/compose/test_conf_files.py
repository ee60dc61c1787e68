"""Every shipped preset composes, and is the model that its name says."""

from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from hub.compose.compose import compose, groups
from hub.config.cluster import CLUSTERS
from hub.config.option import conf_dir
from hub.config.schema import RunConfig
from hub.plugins.registry import registry
from hub.testing import FAMILIES

ALGORITHMS = sorted(registry().algorithms)
CHOICES = [(group, name) for group, names in groups().items() for name in names if group not in ("algo", "experiment")]
PRESETS_OF_ALGORITHMS = [name for name in groups()["algo"] if name not in ALGORITHMS]
PROMISED = [
    "llama3_8b", "llama3_70b", "llama3_1_8b", "llama3_1_70b", "llama3_2_1b", "llama3_2_3b", "mistral_7b",
    "mixtral_8x7b", "phi3_mini", "phi3_5_mini", "qwen2_7b", "qwen2_5_7b", "qwen3_8b", "gemma2_9b", "yi_6b",
    "deepseek_v2_lite", "granite3_3_8b", "gpt_oss_20b", "qwen3_30b_a3b", "smollm2_135m", "tiny",
]  # fmt: skip


@cache
def composed(group: str, name: str) -> RunConfig:
    """The config of one preset, among those for tests."""
    wanted = {"algo": "sft", "model": "tiny", "data": "tiny"} | {group: name}
    wanted |= {"launch.gpus_per_node": "1"} if name in CLUSTERS else {}  # nobody can know the machines of a cluster
    return compose(*(f"{key}={value}" for key, value in wanted.items()))


@pytest.mark.parametrize(("group", "name"), CHOICES, ids=lambda value: value)
def test_a_preset_composes_with_every_algorithm_without_problems(group, name):
    cfg, usual = composed(group, name), composed("algo", "sft")
    assert replace(cfg, **{group: getattr(usual, group)}) == usual, "it sets something beside its own section"
    for algorithm in [*ALGORITHMS, *PRESETS_OF_ALGORITHMS]:
        problems = replace(cfg, algo=composed("algo", algorithm).algo).problems()
        # A pre-quantized model is for adapters without a second quantization: two refusals are expected.
        assert cfg.model.quantization or problems == [], algorithm


def test_all_promised_models_are_there():
    models = groups()["model"]
    assert set(PROMISED) <= set(models)
    assert {f"{name}_bnb_4bit" for name in ("llama3_8b", "llama3_1_8b", "mistral_7b", "qwen2_5_7b", "gemma2_9b")} <= set(models)


@pytest.mark.parametrize("name", groups()["model"])
def test_a_model_preset_is_of_a_family_that_is_tested(name):
    model = composed("model", name).model
    assert model.family in FAMILIES
    assert model.notes
    assert (model.quantization is None) == (not name.endswith("_bnb_4bit"))
    assert model.trust_remote_code is False


def test_no_preset_hides_a_schema_or_another_preset():
    folders = [conf_dir(), *(folder for _, folder in registry().config_dirs)]
    presets = [str(file.relative_to(folder)) for folder in folders for file in folder.glob("*/**/*.yaml")]
    assert [name for name, count in Counter(presets).items() if count > 1] == []
    assert {f"algo/{name}.yaml" for name in ALGORITHMS}.isdisjoint(presets)
    assert registry().warnings == []


def test_presets_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Path(conf_dir(), "config.yaml").is_file()
    assert compose("algo=qlora_sft", "model=tiny").algo.load_in_4bit is True
