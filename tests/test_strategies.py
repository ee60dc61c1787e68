"""Two processes that share out one model, over gloo: the same run as one process that holds all of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hub import compose
from hub.launch import launch
from hub.run import Result

OPTIONS = ["model=tiny", "data=tiny", "model.dtype=float32", "algo.effective_batch_size=16", "algo.learning_rate=1e-3",
           "algo.max_steps=6", "algo.save_every_steps=3", "algo.keep_checkpoints=9"]  # fmt: skip


def fsdp(folder: Path, *more: str) -> Result:
    command = [sys.executable, "-m", "hub", *OPTIONS, *more, f"output_dir={folder}", "launch.nproc_per_node=2"]
    done = subprocess.run(
        [*command, "launch.strategy=fsdp"], env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Result.read(folder / "latest" / "result.json")


def alone(folder: Path, *more: str) -> Result:
    return launch(compose("launch=inline", f"output_dir={folder}", *OPTIONS, *more))


def same_path(one: Result, other: Result) -> None:
    for mine, theirs in zip(one.metrics, other.metrics, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
        assert mine["num_loss_tokens"] == theirs["num_loss_tokens"]
    assert one.eval_loss == pytest.approx(other.eval_loss, rel=1e-5)


@pytest.mark.parametrize(("algo", "file"), [("sft", "model.safetensors"), ("lora_sft", "adapter_model.safetensors")])
def test_shares_train_like_the_whole_and_checkpoints_go_from_one_to_the_other(tmp_path, algo, file):
    whole = alone(tmp_path / "whole", f"algo={algo}")
    shared = fsdp(tmp_path / "shared", f"algo={algo}")
    same_path(shared, whole)
    first, second = load_file(whole.model_path / file), load_file(shared.model_path / file)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.allclose(first[name], second[name], atol=1e-5), name
    # From shares to one process, in the middle of the run.
    checkpoint = shared.run_path / "checkpoints" / "step-00000003"
    (shared.run_path / "result.json").unlink()
    same_path(alone(tmp_path / "shared", f"algo={algo}", f"resume={checkpoint}"), whole)


def test_from_one_process_to_shares(tmp_path):
    whole = alone(tmp_path, "algo=sft", "run_name=whole")
    before = whole.metrics
    (whole.run_path / "result.json").unlink()
    shared = fsdp(tmp_path, "algo=sft", f"resume={whole.run_path / 'checkpoints' / 'step-00000003'}")
    assert [line["step"] for line in shared.metrics] == [line["step"] for line in before]
    for mine, theirs in zip(shared.metrics, before, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
