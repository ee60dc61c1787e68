"""A config that was composed before is the one that Hydra would compose now."""

import shutil
import sys

import pytest

from hub.compose import preset_cache
from hub.compose.compose import compose
from hub.config.option import conf_dir
from hub.errors import ConfigError
from hub.plugins.registry import registry


@pytest.fixture
def composed(tmp_path, monkeypatch) -> list[list[str]]:
    """The choices that Hydra is asked for, with presets of the test's own: a copy of the hub's, in `tmp_path`."""
    asked = []

    def compose_and_note(name, overrides):
        asked.append(overrides)
        return original(name, overrides=overrides)

    original = preset_cache.hydra_compose
    folder = shutil.copytree(conf_dir(), tmp_path / "conf")
    for module in (sys.modules["hub.compose.compose"], preset_cache):
        monkeypatch.setattr(module, "conf_dir", lambda: folder)
    monkeypatch.setattr(preset_cache, "hydra_compose", compose_and_note)
    monkeypatch.setattr(preset_cache, "_cached", {})
    return asked


def test_hydra_composes_the_same_choices_once_and_each_caller_has_a_config_of_its_own(composed):
    first = compose("algo=sft", "model=tiny", "data.columns={question: q}", "algo.max_steps=3")
    second = compose("algo=sft", "model=tiny")
    assert composed == [["algo=sft", "model=tiny"]]
    assert (first.data.columns, first.algo.max_steps) == ({"question": "q"}, 3)
    assert (second.data.columns, second.algo.max_steps) == ({}, None)
    assert compose("algo=lora_sft", "model=tiny").algo != second.algo


def test_a_preset_that_is_written_anew_counts_at_once(composed, tmp_path):
    assert compose("model=tiny").model.revision is None
    preset = tmp_path / "conf" / "model" / "tiny.yaml"
    preset.write_text(preset.read_text() + "revision: abc\n")
    assert compose("model=tiny").model.revision == "abc"
    (tmp_path / "own" / "model").mkdir(parents=True)
    for revision in ("own", "new"):
        (tmp_path / "own" / "model" / "tiny.yaml").write_text(f"revision: {revision}\n")
        assert compose("model=tiny", config_dir=str(tmp_path / "own")).model.revision == revision
    assert compose("model=tiny").model.revision == "abc"
    preset.unlink()
    with pytest.raises(ConfigError, match="model=tiny: there is no such preset"):
        compose("model=tiny")


def test_an_algorithm_that_is_replaced_counts_at_once(composed, monkeypatch):
    compose("algo=sft")
    other = registry().algorithms["lora_sft"]
    monkeypatch.setitem(registry().algorithms, "sft", other)
    compose("algo=sft")
    assert composed == [["algo=sft"]] * 2


def test_the_oldest_configs_leave_the_cache(composed, monkeypatch):
    monkeypatch.setattr(preset_cache, "MAX_CONFIGS", 2)
    for name in ("llama3_8b", "tiny", "qwen3_8b", "tiny", "llama3_8b"):
        compose(f"model={name}")
    assert [words for (*_, words) in composed] == [f"model={name}" for name in ("llama3_8b", "tiny", "qwen3_8b", "llama3_8b")]
