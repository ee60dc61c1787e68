"""Trains tiny random models through the hub as a user would. Needs hub-example to be installed."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

import hub
from hub.testing import tiny_model, write_chats


def changed(base: Path, trained: Path) -> set[str]:
    """Names of the tensors that differ between two saved models."""
    before, after = load_file(base / "model.safetensors"), load_file(trained / "model.safetensors")
    assert before.keys() == after.keys()
    return {name for name in before if not before[name].equal(after[name])}


@pytest.mark.parametrize(
    ("family", "parts", "learns"),
    [
        ("qwen2", "auto", (".bias",)),
        ("llama", "auto", ("norm.weight",)),
        ("qwen2", "both", (".bias", "norm.weight")),
        ("gpt2", "norms", ("ln_1.weight", "ln_2.weight", "ln_f.weight")),
    ],
)
def test_only_the_chosen_parts_learn(family, parts, learns, tmp_path):
    base = tiny_model(tmp_path / "base", family)
    data = write_chats(tmp_path / "chats.jsonl", num_rows=16)
    result = hub.run(
        "bitfit",
        model=base,
        data=data,
        parts=parts,
        max_steps=2,
        effective_batch_size=8,
        learning_rate=1e-2,
        dtype="float32",
        mode="inline",
        output_dir=tmp_path / "runs",
    )
    names = load_file(base / "model.safetensors").keys()
    wanted = {name for name in names if name.endswith(learns)}
    assert wanted
    assert changed(base, result.model_path) == wanted


def test_a_model_learns_by_its_norms(tmp_path):
    result = hub.run(
        "norm_tuning",
        model="tiny",
        data="tiny",
        num_epochs=4.0,
        learning_rate=2e-2,
        mode="inline",
        output_dir=tmp_path / "runs",
    )
    assert result.eval_loss < result.eval_loss_before - 0.1


def test_a_model_without_biases_is_refused_when_biases_are_asked_for(tmp_path):
    with pytest.raises(hub.HubError, match=r"algo.parts=biases: .* nothing would be trained. Type algo.parts=norms"):
        hub.run("bitfit", model="tiny", data="tiny", parts="biases", max_steps=1, output_dir=tmp_path / "runs")


def test_options_without_effect_are_refused_before_anything_starts():
    with pytest.raises(hub.ConfigError, match=r"algo.weight_decay=0.1 has no effect"):
        hub.compose("algo=bitfit", "algo.weight_decay=0.1", "model=tiny", "data=tiny", check=True)
    with pytest.raises(hub.ConfigError, match=r"algo.parts=bias is not allowed.*Did you mean biases"):
        hub.compose("algo=bitfit", "algo.parts=bias", "model=tiny", "data=tiny", check=True)


def test_the_presets_are_found():
    assert hub.compose("algo=norm_tuning").algo.parts == "norms"
    experiment = hub.compose("experiment=bitfit_tiny")
    assert experiment.model.family == "llama"
    assert experiment.algo.max_steps == 20
