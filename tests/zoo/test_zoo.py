"""A few architectures every day. `make zoo` examines all of them."""

import pytest
from zoo.examine import examine

from hub.train.setup.setup import Setup

EVERYDAY = [
    ("llama", "sft"), ("qwen3", "lora_sft"), ("mixtral", "sft"), ("gpt_oss", "sft"), ("deepseek_v2", "lora_sft"),
    ("qwen3_moe", "osft"), ("falcon_h1", "lora_sft"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "algo"), EVERYDAY)
def test_it_trains_as_an_independent_loop_does_and_is_saved_as_it_was_trained(tmp_path, name, algo):
    found = examine(name, algo, tmp_path)
    assert not found.problem, found.line()


def test_the_examination_sees_other_training_and_another_saved_model(tmp_path, monkeypatch):
    save = Setup.save_whole_model

    def save_another(setup, model, folder, weights):
        save(setup, model, folder, {name: 1.001 * weight for name, weight in weights.items()})

    monkeypatch.setattr(Setup, "save_whole_model", save_another)
    found = examine("llama", "sft", tmp_path, "algo.adam_beta2=0.999")
    assert found.problem == "steps differs, saved differs"
