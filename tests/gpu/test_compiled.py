"""Compiled layers on a GPU: nothing is compiled after the first step, whatever the lengths."""

import json

import pytest

from hub import compose
from hub.launch import launch


@pytest.mark.parametrize("algo", ["sft", "lora_sft", "qlora_sft"])
@pytest.mark.parametrize("recomputed", ["none", "all"])
def test_nothing_is_compiled_after_the_first_step(tmp_path, algo, recomputed):
    options = [f"algo={algo}", f"algo.gradient_checkpointing={recomputed}", "model=tiny", "data=tiny", "launch=inline"]
    small = ["algo.max_tokens_per_gpu=700", "algo.effective_batch_size=16", "algo.max_steps=25", "algo.num_epochs=9"]
    result = launch(compose(*options, *small, "algo.torch_compile=layers", f"output_dir={tmp_path}"))
    plan = json.loads((result.run_path / "plan.json").read_text())
    assert (plan["attention"], plan["packed"], plan["compiled"]) == ("variable-length", True, True)
    counts = [line["graphs_compiled"] for line in result.metrics]
    assert len(counts) == 25
    assert len(set(counts)) == 1
