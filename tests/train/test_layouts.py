"""One step is the same step in every layout: micro-batches, ranks (real processes over gloo), packed and padded."""

import importlib.util
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from hub.testing import tiny_model_path

pytestmark = pytest.mark.usefixtures("warm_python")

SCRIPT = Path(__file__).with_name("layouts.py")
TOLERANCE = 1e-6


@cache
def layouts_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("layouts", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def reference(name: str) -> dict[str, torch.Tensor]:
    return layouts_module().reference(str(tiny_model_path("llama")), name)


def gradients_of(folder: Path, ranks: int, most_tokens_on_last_rank: str = "") -> dict[str, dict[str, torch.Tensor]]:
    if ranks == 1:
        layouts_module().main(str(tiny_model_path("llama")), folder, most_tokens_on_last_rank)
    else:
        run = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command = [*run, str(SCRIPT), str(tiny_model_path("llama")), str(folder), most_tokens_on_last_rank]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    return {file.stem: load_file(file) for file in sorted(folder.glob("*.safetensors"))}


def difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Norm of the difference of all gradients over the norm of the expected ones."""
    assert found.keys() - {"_apart"} == expected.keys()
    keys = [key for key in expected if not key.startswith("_")]
    error = sum(float((found[key].double() - expected[key].double()).square().sum()) for key in keys)
    return (error / sum(float(expected[key].double().square().sum()) for key in keys)) ** 0.5


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_gradients_and_evaluation_are_those_of_one_sample_at_a_time_in_float64(tmp_path, ranks, record_property):
    found = gradients_of(tmp_path, ranks)
    assert len(found) == 18
    worst: dict[str, float] = {}
    for name, gradients in found.items():
        batch = name.split("-")[0]
        expected = reference(batch)
        worst[batch] = max(worst.get(batch, 0.0), difference(gradients, expected))
        assert gradients["_eval_loss"].item() == pytest.approx(expected["_eval_loss"].item(), rel=1e-6), name
    apart = torch.stack([gradients["_apart"] for name, gradients in found.items() if name.startswith("pairs")])
    assert (apart[:, 0] == 0).any() == (ranks == 1), "chosen and rejected in one micro-batch"
    assert (apart[:, 0] > 8).any(), "chosen and rejected in different micro-batches"
    assert (apart[:, 1] > 4).any() == (ranks > 1), "chosen and rejected on different ranks"
    record_property("greatest_relative_differences", worst)
    print(f"{ranks} rank(s): greatest relative differences {', '.join(f'{name} {value:.1e}' for name, value in worst.items())}")
    assert max(worst.values()) < TOLERANCE


def test_a_rank_that_runs_out_of_memory_makes_all_do_the_step_again_in_smaller_pieces_with_the_same_result(tmp_path):
    found = gradients_of(tmp_path, 2, "120")
    assert max(difference(gradients, reference(name.split("-")[0])) for name, gradients in found.items()) < TOLERANCE
