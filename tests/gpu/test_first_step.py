"""Before the first step on a GPU: what an earlier run measured, and a context that is made beside the imports."""

import json
import subprocess
import sys

import pytest

from hub import compose
from hub.launch.launcher import launch
from hub.testing import write_chats

OPTIONS = [
    "algo=lora_sft",
    "model=tiny",
    "launch=inline",
    "algo.max_steps=3",
    "algo.effective_batch_size=32",
    "algo.lora_dropout=0.1",
]

CONTEXT = """
from hub.system.early import make_gpu_context
make_gpu_context(0).join()
import torch
assert torch.ones(3, device="cuda").sum().item() == 3
"""


@pytest.mark.parametrize("compiled", ["none", "layers"])
def test_the_second_run_of_a_kind_measures_no_memory_and_has_the_same_losses(tmp_path, compiled):
    rows = write_chats(tmp_path / "chats.jsonl", num_rows=200)
    found = []
    for more in ([], [], ["launch.reuse_measurements=false"]):
        words = [*OPTIONS, f"data.path={rows}", f"algo.torch_compile={compiled}", f"output_dir={tmp_path}", *more]
        result = launch(compose(*words))
        plan = json.loads((result.run_path / "plan.json").read_text())
        found.append(([(line["loss"], line["grad_norm"]) for line in result.metrics], plan))
    (losses, first), (again, second), (anew, third) = found
    assert "measured_before" not in first
    assert {"memory", "isolation", "causality"} <= set(second["measured_before"]["what"])
    assert again == losses == anew
    assert "measured_before" not in third
    layout = ("max_tokens_per_gpu", "layers_recomputed", "packed", "attention", "fused_head", "compiled")
    assert [first[key] for key in layout] == [second[key] for key in layout]
    assert second["timeline"].get("memory", 0) < first["timeline"]["memory"]


def test_torch_uses_the_context_that_was_made_before_it_was_imported():
    done = subprocess.run([sys.executable, "-c", CONTEXT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
