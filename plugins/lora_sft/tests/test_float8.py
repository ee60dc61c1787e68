"""Frozen layers in fp8, without a GPU: the products are exact sums of the same numbers that a GPU would multiply."""

import json
from pathlib import Path

import pytest
import torch
from hub_lora_sft.float8 import Float8Linear, hold_in_fp8
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from hub import ConfigError, Result, compose
from hub.launch.launcher import launch
from hub.testing import tiny_model_path
from hub.train.kernels.float8 import LARGEST


def by_hand(rows: torch.Tensor) -> torch.Tensor:
    """(n, k) float64: what is left of float64 rows in e4m3 with a scale per row, by arithmetic alone.

    4 significant bits; below 2^-6 of the scale steps of 2^-9, halves to even.
    """
    scales = rows.abs().amax(1, keepdim=True).float().double() / LARGEST
    units = rows / scales
    exponents = torch.floor(torch.log2(units.abs().clamp(min=2.0**-6)))
    steps = 2.0 ** (exponents - 3)
    return torch.round(units / steps) * steps * scales


def layer_of(out: int = 48, size: int = 32, bias: bool = False) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(size, out, bias=bias)
    layer.weight.data *= torch.logspace(-2, 1, out)[:, None]  # rows of very different size
    return layer.requires_grad_(False)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_both_products_are_those_of_the_same_rounded_numbers(bias, dtype):
    layer = layer_of(bias=bias)
    held = Float8Linear(layer)
    weight = by_hand(layer.weight.double())
    torch.manual_seed(2)
    x = torch.randn(3, 5, 32).to(dtype).requires_grad_()
    y = held(x)
    assert y.dtype == torch.bfloat16
    expected = by_hand(x.detach().double().flatten(0, 1)) @ weight.T
    if bias:
        expected = expected + layer.bias.double()
    torch.testing.assert_close(y.double().flatten(0, 1), expected, rtol=2**-7, atol=1e-3)
    gradient = torch.randn(3, 5, 48).bfloat16() * 1e-12  # of the size that single tokens have
    y.backward(gradient)
    scales = layer.weight.double().abs().amax(1) / LARGEST
    expected = by_hand(gradient.double().flatten(0, 1) * scales) @ (weight / scales[:, None])
    assert x.grad.dtype == dtype
    assert x.grad.abs().max() > 0
    torch.testing.assert_close(x.grad.double().flatten(0, 1), expected, rtol=2**-7, atol=1e-3 * float(expected.abs().max()))


def test_the_error_of_a_layer_is_that_of_its_rounding():
    torch.manual_seed(3)
    layer = nn.Linear(512, 256, bias=False).requires_grad_(False)
    x = torch.randn(64, 512, requires_grad=True)
    exact, rounded = layer(x), Float8Linear(layer)(x)
    # Two operands with a relative error of about 2^-5 (root mean square below 2^-4 / sqrt 3) and signs that are independent.
    assert 0.005 < (rounded - exact).norm() / exact.norm() < 2**0.5 * 2**-4 / 3**0.5


def model_in_fp8(**sizes: int):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path("llama"), dtype=torch.bfloat16, **sizes)
    adapted = get_peft_model(model.train(), LoraConfig(target_modules=["q_proj", "down_proj"], r=4, init_lora_weights=False))
    return adapted, hold_in_fp8(adapted)


def test_all_frozen_linear_layers_but_the_output_are_held_and_nothing_else():
    model, (held, left) = model_in_fp8()
    kinds = {name: type(module).__name__ for name, module in model.named_modules() if hasattr(module, "in_features")}
    is_held = {name for name, kind in kinds.items() if kind == "Float8Linear"}
    assert set(held) == is_held
    assert (len(held), left) == (14, [])
    assert all("lora_" in name or name.endswith("lm_head") or kinds[name] == "Linear" for name in set(kinds) - is_held)
    assert all("_proj" in name for name in is_held)
    numbers = {p.dtype for name, p in model.named_parameters() if name.endswith("codes")}
    assert numbers == {torch.float8_e4m3fn}
    assert all(p.requires_grad == ("lora_" in name) for name, p in model.named_parameters())


def test_layers_of_odd_sizes_stay_as_they_are_and_are_counted():
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path("llama"))
    block = model.model.layers[0].mlp
    block.gate_proj, block.up_proj, block.down_proj = nn.Linear(64, 40), nn.Linear(64, 40), nn.Linear(40, 64)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    held, left = hold_in_fp8(adapted)
    assert len(held) == 11
    assert [name.rpartition(".")[2] for name in left] == ["gate_proj", "up_proj", "down_proj"]
    adapted(input_ids=torch.arange(5)[None]).logits.sum().backward()


def test_a_model_without_a_fitting_layer_is_refused():
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path("gpt2"))
    adapted = get_peft_model(model, LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    with pytest.raises(ConfigError, match=r"none of the model's 8 linear layers can be held in fp8.*Type algo\.precision=auto"):
        hold_in_fp8(adapted)


def test_an_adapter_is_not_merged_into_codes():
    model, _ = model_in_fp8()
    with pytest.raises(ConfigError, match="Load the saved adapter onto the base model and merge it there"):
        model.merge_adapter()


@pytest.mark.slow
def test_compiled_layers_give_the_same_and_one_input_is_rounded_once(monkeypatch):
    from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
    from torch._dynamo.backends.common import aot_autograd

    from hub.models.patches import ModelPatches
    from hub.models.structure import layers_of
    from hub.train.kernels import compiled

    model, _ = model_in_fp8()
    ids = torch.randint(3, 512, (1, 40), generator=torch.Generator().manual_seed(0))

    def gradient() -> torch.Tensor:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            model(input_ids=ids, use_cache=False, labels=ids).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])

    expected = gradient()
    casts: list[int] = []

    def count(graph, inputs):
        calls = [node for node in graph.graph.nodes if node.op == "call_function"]
        casts.append(sum(torch.float8_e4m3fn in (*call.args, *call.kwargs.values()) for call in calls))
        return make_boxed_func(graph.forward)

    real, before = torch.compile, compiled.num_compiled()
    torch._dynamo.reset()
    backend = aot_autograd(fw_compiler=count, partition_fn=min_cut_rematerialization_partition)  # as inductor divides graphs
    monkeypatch.setattr(torch, "compile", lambda function: real(function, backend=backend))
    ModelPatches(model).apply(compiled.CompiledLayers(layers_of(model)))
    assert torch.equal(gradient(), expected)
    assert compiled.num_compiled() - before <= 2  # adapted layers are alike: all share one version
    assert casts[0] == 4  # the inputs of q k v, of o, of gate and up, of down


@pytest.fixture
def emulated(monkeypatch):
    monkeypatch.setattr("hub.launch.preflight.has_no_gpu", lambda: False)
    monkeypatch.setattr("hub.train.setup.setup.check_gpu", lambda: None)


def run(tmp_path: Path, *overrides: str) -> Result:
    options = ["algo=lora_sft", "algo.precision=fp8", "model=tiny", "data=tiny", "launch=inline", "algo.learning_rate=1e-2"]
    options += ["algo.max_steps=6", "algo.effective_batch_size=8", "model.dtype=bfloat16", f"output_dir={tmp_path}"]
    return launch(compose(*options, *overrides))


@pytest.mark.parametrize("options", [[], ["algo.init=pissa"], ["algo.bias=all", "model.path=tiny:qwen2"]])
def test_a_run_learns_and_its_adapter_is_like_any_other(tmp_path, emulated, options):
    result = run(tmp_path, *options)
    assert result.eval_loss < result.eval_loss_before - 0.05
    plan = json.loads((result.run_path / "plan.json").read_text())
    assert (plan["precision"], plan["fp8_layers"], plan["fp8_layers_left_out"]) == ("fp8", 14, 0)
    plain = run(tmp_path, "algo.precision=auto", *options)
    saved, expected = (load_file(one.model_path / "adapter_model.safetensors") for one in (result, plain))
    assert {name: tensor.shape for name, tensor in saved.items()} == {name: tensor.shape for name, tensor in expected.items()}
    assert result.eval_loss == pytest.approx(plain.eval_loss, abs=0.05)
    assert json.loads((plain.run_path / "plan.json").read_text())["parameters"] == plan["parameters"]
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(result.base_model_path), result.model_path)
