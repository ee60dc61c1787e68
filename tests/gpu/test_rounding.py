"""Weights in bfloat16 on a GPU: one kernel for each weight, which rounds like the plain operations and allocates no memory."""

import json

import pytest
import torch
from safetensors.torch import load_file

from hub import compose
from hub.launch.launcher import launch
from hub.train.adamw_bf16 import StochasticAdamW

SHAPES = [(300, 128), (17,), (64, 64), (5, 4, 3), (1000,), (1,), (8,), (4096, 512)]


def parameters() -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, device="cuda").bfloat16()) for shape in SHAPES]


def steps(weights, optimizer, number: int) -> None:
    dice = torch.Generator("cuda").manual_seed(1)
    for _ in range(number):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=dice, device="cuda").bfloat16()
        optimizer.step()


def after_two(compiled: bool) -> list[torch.Tensor]:
    weights = parameters()
    optimizer = StochasticAdamW(weights, lr=1e-3, weight_decay=0.1, seed=3, compiled=compiled)
    steps(weights, optimizer, 2)
    return [t for w in weights for t in (w.detach(), optimizer.state[w]["exp_avg"], optimizer.state[w]["exp_avg_sq"])]


def test_the_compiled_step_rounds_as_the_plain_one_and_is_compiled_twice_at_most():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    found, again = after_two(True), after_two(True)
    # Once for all lengths, once for a weight of one number.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    for one, other in zip(found, after_two(False), strict=True):
        # A kernel may round a product and a sum once together: chance then falls on the other side now and then, by one place.
        # Where a sum almost vanishes, what float32 loses in it is many places.
        one, other = one.double(), other.double()
        assert ((one - other).abs() <= 2**-7 * other.abs() + 1e-6).all()
        assert (one != other).double().mean() < 1e-3 or one.numel() < 1000


def test_small_steps_add_up_in_the_kernel():
    weight = torch.nn.Parameter(torch.full((2**20,), 1.5, dtype=torch.bfloat16, device="cuda"))
    optimizer = StochasticAdamW([weight], lr=2**-7 / 100, betas=(0.9, 0.95), compiled=True)
    for _ in range(150):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert float((1.5 - weight.detach().double()).mean()) == pytest.approx(150 * 2**-7 / 100, rel=0.01)


def test_eight_bytes_a_parameter_and_none_while_the_weights_change():
    number = 2**27
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    weight = torch.nn.Parameter(torch.zeros(2**14, 2**13, dtype=torch.bfloat16, device="cuda"))
    weight.grad = torch.ones_like(weight)
    optimizer = StochasticAdamW([weight], compiled=True)
    optimizer.step()
    torch.cuda.reset_peak_memory_stats()
    optimizer.step()
    assert torch.cuda.memory_allocated() - before == pytest.approx(8 * number, rel=0.01)
    assert torch.cuda.max_memory_allocated() - before == pytest.approx(8 * number, rel=0.01)


OPTIONS = ("algo=sft", "model=tiny", "data=tiny", "launch=inline", "algo.master_weights=false", "algo.effective_batch_size=8",
           "algo.learning_rate=1e-3", "algo.max_steps=8", "algo.save_every_steps=3", "algo.keep_checkpoints=9",
           "algo.deterministic=true")  # fmt: skip


@pytest.mark.parametrize("compiled", ["auto", "none"])
def test_a_run_learns_and_is_resumed_bit_for_bit(tmp_path, compiled):
    options = [*OPTIONS, f"algo.torch_compile={compiled}", f"output_dir={tmp_path}"]
    whole = launch(compose(*options))
    assert whole.eval_loss < whole.eval_loss_before - 0.5
    assert json.loads((whole.run_path / "plan.json").read_text())["weights_kept_in"] == "bfloat16"
    weights, losses = load_file(whole.model_path / "model.safetensors"), [line["loss"] for line in whole.metrics]
    (whole.run_path / "result.json").unlink()
    torch.manual_seed(99)
    resumed = launch(compose(*options, f"resume={whole.run_path / 'checkpoints' / 'step-00000003'}"))
    again = load_file(resumed.model_path / "model.safetensors")
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert [line["loss"] for line in resumed.metrics] == losses
