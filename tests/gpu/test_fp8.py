"""Layers in fp8 on a GPU, frozen and trained: torch's products compared with exact sums, compiled layers, and a run."""

import json

import pytest
import torch
from hub_lora_sft.float8 import Float8Linear
from hub_sft.float8 import Float8LearningLinear
from torch import nn

from hub import ConfigError, compose
from hub.launch.launcher import launch
from hub.train.kernels.float8 import check_gpu, product, to_fp8


@pytest.fixture(autouse=True)
def _fitting_gpu():
    try:
        check_gpu()
    except ConfigError as error:
        pytest.skip(f"needs another GPU: {error}")


def layer_of(out: int, size: int) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(size, out, bias=False, device="cuda", dtype=torch.bfloat16)
    layer.weight.data *= torch.logspace(-2, 1, out, device="cuda")[:, None]
    return layer.requires_grad_(False)


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("tokens", [1, 2, 17, 1000, 4099])
@pytest.mark.parametrize(("out", "size"), [(64, 32), (4096, 1024), (1024, 14336), (16, 16)])
def test_the_gpus_products_are_the_exact_ones_but_for_how_they_are_added_up(tokens, out, size):
    torch.manual_seed(1)
    a, a_scales = to_fp8(torch.randn(tokens, size, device="cuda") * torch.logspace(-12, 3, tokens, device="cuda")[:, None])
    b, b_scales = to_fp8(layer_of(out, size).weight)
    found = product(a, b, a_scales, b_scales[:, 0].contiguous())
    expected = a.double() @ b.double().t() * a_scales * b_scales[:, 0]
    rows = (found.double() - expected).norm(dim=1) / expected.norm(dim=1)
    assert found.dtype == torch.bfloat16
    # Tensor cores add fp8 products with fewer bits than float32 has. What was lost by rounding to fp8 is more.
    assert rows.max() < 3e-2


def test_both_ways_through_a_layer_are_near_those_in_bfloat16():
    layer = layer_of(1024, 512)
    held = Float8Linear(layer)
    torch.manual_seed(2)
    x = torch.randn(2, 300, 512, device="cuda", dtype=torch.bfloat16)
    gradient = torch.randn(2, 300, 1024, device="cuda", dtype=torch.bfloat16) * 1e-9
    results = []
    for module in (layer, held):
        inputs = x.clone().requires_grad_()
        y = module(inputs)
        y.backward(gradient)
        results.append((y, inputs.grad))
    for exact, found in zip(*results, strict=True):
        assert exact.shape == found.shape
        assert difference(found, exact) < 0.05


def test_a_compiled_layer_gives_what_it_gives_as_it_is():
    held = Float8Linear(layer_of(512, 1024))
    compiled = torch.compile(held, dynamic=True)
    for tokens in (300, 17, 4099):
        torch.manual_seed(tokens)
        x = torch.randn(1, tokens, 1024, device="cuda", dtype=torch.bfloat16)
        gradient = torch.randn(1, tokens, 512, device="cuda", dtype=torch.bfloat16)
        results = []
        for module in (held, compiled):
            inputs = x.clone().requires_grad_()
            y = module(inputs)
            y.backward(gradient)
            results.append((y, inputs.grad))
        for expected, found in zip(*results, strict=True):
            # A number on the border between two codes may fall to either side.
            assert difference(found, expected) < 5e-3


def learning_layer(out: int, size: int, kept_in: torch.dtype) -> nn.Linear:
    layer = layer_of(out, size).to(kept_in).requires_grad_()
    layer.__class__ = Float8LearningLinear
    return layer


def both_ways(layer, x: torch.Tensor, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The output, and the gradients of the input and the weight."""
    inputs = x.clone().requires_grad_()
    with torch.autocast("cuda", torch.bfloat16):
        y = layer(inputs)
    (weight,) = layer.parameters()
    return y, *torch.autograd.grad(y, (inputs, weight), gradient)


@pytest.mark.parametrize("kept_in", [torch.float32, torch.bfloat16])
def test_all_three_products_of_a_learning_layer_are_near_those_in_bfloat16(kept_in):
    layer = learning_layer(1024, 512, kept_in)
    torch.manual_seed(2)
    x = torch.randn(2, 300, 512, device="cuda", dtype=torch.bfloat16)
    gradient = torch.randn(2, 300, 1024, device="cuda", dtype=torch.bfloat16) * 1e-9
    y, of_input, of_weight = both_ways(layer, x, gradient)
    exact = both_ways(layer.eval(), x, gradient)
    assert [tensor.dtype for tensor in (y, of_input, of_weight)] == [torch.bfloat16, torch.bfloat16, kept_in]
    assert difference(y, exact[0]) < 0.05
    assert difference(of_input, exact[1]) < 0.05
    assert difference(of_weight, exact[2]) < 5e-3
    assert difference(y, exact[0]) > 0.005


@pytest.mark.parametrize("kept_in", [torch.float32, torch.bfloat16])
def test_a_compiled_learning_layer_gives_what_it_gives_as_it_is(kept_in):
    layer = learning_layer(512, 1024, kept_in)
    compiled = torch.compile(layer, dynamic=True)
    for tokens in (300, 17, 4099):
        torch.manual_seed(tokens)
        x = torch.randn(1, tokens, 1024, device="cuda", dtype=torch.bfloat16)
        x *= torch.logspace(-12, 3, tokens, device="cuda")[:, None].bfloat16()
        gradient = torch.randn(1, tokens, 512, device="cuda", dtype=torch.bfloat16)
        expected, found = both_ways(layer, x, gradient), both_ways(compiled, x, gradient)
        assert all(tensor.isfinite().all() for tensor in found)
        for one, other in zip(found, expected, strict=True):
            assert difference(one, other) < 1e-2  # numbers on the border, of the weight as well
        with torch.no_grad():
            layer.weight.mul_(-1.5)  # as an optimizer changes it


def run(tmp_path, *overrides: str):
    options = ["algo=lora_sft", "model=tiny", "data=tiny", "launch=inline", "algo.learning_rate=1e-2", "algo.max_steps=8"]
    return launch(compose(*options, f"output_dir={tmp_path}", *overrides))


FULL = ["algo=sft", "algo.learning_rate=1e-3", "algo.effective_batch_size=8"]


@pytest.mark.parametrize("compiled", ["none", "layers"])
@pytest.mark.parametrize(
    "options",
    [[], FULL, [*FULL, "algo.master_weights=false"], [*FULL, "algo.gradient_checkpointing=all"]],
    ids=["lora", "full", "full in bfloat16", "full, checkpointed"],
)
def test_a_run_learns_like_one_in_bfloat16(tmp_path, compiled, options):
    found = run(tmp_path, *options, "algo.precision=fp8", f"algo.torch_compile={compiled}")
    plain = run(tmp_path, *options)
    assert found.eval_loss < found.eval_loss_before - 0.05
    assert found.eval_loss == pytest.approx(plain.eval_loss, abs=0.05)
    plan = json.loads((found.run_path / "plan.json").read_text())
    assert (plan["precision"], plan["fp8_layers"], plan["fp8_layers_left_out"]) == ("fp8", 14, 0)
    assert plan["packed"]


@pytest.mark.parametrize("checkpointing", ["none", "all"])
def test_nothing_is_compiled_after_the_first_step(tmp_path, checkpointing):
    options = [*FULL, "algo.precision=fp8", "algo.torch_compile=layers", f"algo.gradient_checkpointing={checkpointing}"]
    result = run(tmp_path, *options, "algo.max_tokens_per_gpu=700", "algo.max_steps=25", "algo.num_epochs=9")
    counts = [line["graphs_compiled"] for line in result.metrics]
    assert len(counts) == 25
    assert len(set(counts)) == 1
