"""Compiled layers on a GPU: nothing is compiled after the first step, for any lengths."""

import json

import pytest

from hub import ConfigError, compose
from hub.launch.launcher import launch
from hub.train.kernels.float8 import check_gpu

OFFLOADED = "algo.activation_offload=all"
IN_FP8 = "algo.precision=fp8"


@pytest.mark.parametrize(
    ("algo", "checkpointing", "more"),
    [
        *((algo, checkpointing, ()) for algo in ("sft", "lora_sft", "qlora_sft") for checkpointing in ("none", "all")),
        *((algo, "none", (IN_FP8,)) for algo in ("sft", "lora_sft")),
        *((algo, "all", (OFFLOADED,)) for algo in ("lora_sft", "qlora_sft")),
    ],
)
def test_nothing_is_compiled_after_the_first_step(tmp_path, algo, checkpointing, more):
    if IN_FP8 in more:
        try:
            check_gpu()
        except ConfigError as error:
            pytest.skip(f"needs another GPU: {error}")
    options = [f"algo={algo}", f"algo.gradient_checkpointing={checkpointing}", "model=tiny", "data=tiny", "launch=inline"]
    small = ["algo.max_tokens_per_gpu=700", "algo.effective_batch_size=16", "algo.max_steps=25", "algo.num_epochs=9"]
    result = launch(compose(*options, *small, "algo.torch_compile=layers", f"output_dir={tmp_path}", *more))
    plan = json.loads((result.run_path / "plan.json").read_text())
    assert (plan["attention"], plan["packed"], plan["compiled"]) == ("variable-length", True, True)
    assert plan["activation_offload"] == (OFFLOADED in more)
    counts = [line["graphs_compiled"] for line in result.metrics]
    assert len(counts) == 25
    assert len(set(counts)) == 1
