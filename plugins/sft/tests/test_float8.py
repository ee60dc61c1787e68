"""Trained layers in fp8, without a GPU: the products are exact sums of the same numbers that a GPU would multiply."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from hub_sft.float8 import Float8LearningLinear, as_saved, learn_in_fp8
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from hub import ConfigError, Result, compose
from hub.launch.launcher import launch
from hub.models.patches import ModelPatches
from hub.models.structure import layers_of
from hub.testing import tiny_model_path
from hub.train.kernels.checkpointing import Checkpointing
from hub.train.kernels.float8 import LARGEST, to_fp8


def rounded(rows: torch.Tensor) -> torch.Tensor:
    """(n, k) float64: what fp8 with a scale for each row leaves of them."""
    codes, scales = to_fp8(rows)
    return codes.double() * scales


def learning(layer: nn.Linear) -> nn.Linear:
    learn_in_fp8(Holder(layer))
    assert type(layer) is Float8LearningLinear
    return layer


class Holder(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def get_output_embeddings(self) -> None:
        return None


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kept_in", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_all_three_products_are_those_of_the_same_numbers_and_follow_the_weight(bias, kept_in, dtype):
    torch.manual_seed(0)
    layer = nn.Linear(32, 48, bias=bias)
    layer.weight.data *= torch.logspace(-2, 1, 48)[:, None]  # rows of very different size
    layer = learning(layer.to(kept_in))
    x = torch.randn(3, 5, 32).to(dtype).requires_grad_()
    gradient = torch.randn(3, 5, 48).bfloat16() * torch.logspace(-12, 0, 5)[:, None].bfloat16()  # as single tokens have
    for _ in range(2):
        x.grad = layer.weight.grad = None
        y = layer(x)
        y.backward(gradient)
        kept = layer.weight.detach().bfloat16()
        weight, rows, g = rounded(kept), x.detach().bfloat16().flatten(0, 1), gradient.flatten(0, 1)
        expected = rounded(rows) @ weight.T
        if bias:
            expected = expected + layer.bias.double()
        assert (y.dtype, x.grad.dtype, layer.weight.grad.dtype) == (torch.bfloat16, dtype, kept_in)
        torch.testing.assert_close(y.double().flatten(0, 1), expected, rtol=2**-7, atol=1e-3)
        scales = kept.double().abs().amax(1) / LARGEST
        expected = rounded(g.float() * scales.float()) @ (weight / scales[:, None])
        sizes = expected.abs().amax(1, keepdim=True)  # each token by itself: their gradients differ by 12 orders of magnitude
        torch.testing.assert_close(x.grad.double().flatten(0, 1) / sizes, expected / sizes, rtol=2**-7, atol=1e-3)
        torch.testing.assert_close(layer.weight.grad.double(), g.double().T @ rows.double(), rtol=2**-7, atol=2**-7)
        with torch.no_grad():
            layer.weight.copy_(layer.weight.flip(0) * 1.5)  # as an optimizer changes it


def test_what_a_saved_model_would_lose_is_not_computed_with():
    torch.manual_seed(0)
    layer = learning(nn.Linear(32, 48, bias=False))
    layer.weight.data = layer.weight.data.bfloat16().float()
    x = torch.randn(4, 32)
    before = layer(x)
    layer.weight.data *= 1 + 2**-10  # less than half a place of bfloat16
    assert torch.equal(layer(x), before)
    layer.weight.data *= 1 + 2**-4
    assert not torch.equal(layer(x), before)


def test_a_weight_is_rounded_as_torch_rounds_it_to_bfloat16():
    torch.manual_seed(0)
    ties = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 3.4e38, 1e-40, 0.0, -0.0, torch.inf, -torch.inf])
    for weight in (torch.randn(4096), ties, ties.bfloat16()):
        assert torch.equal(as_saved(weight), weight.bfloat16())
    nans = torch.tensor([0x7FFFFFFF, 0x7F800001, -1], dtype=torch.int32).view(torch.float32)
    assert as_saved(nans).isnan().all()


@pytest.mark.skipif(shutil.which("g++") is None, reason="the package g++ is not installed")
@pytest.mark.slow
def test_a_compiler_does_not_leave_that_rounding_out():
    torch.manual_seed(0)
    torch._dynamo.reset()
    weight = torch.randn(64, 128)
    expected = to_fp8(as_saved(weight))
    found = torch.compile(lambda weight: to_fp8(as_saved(weight)))(weight)
    assert all(torch.equal(one.float(), other.float()) for one, other in zip(found, expected, strict=True))


def test_between_the_passes_the_weight_itself_is_kept_and_no_copy():
    layer, kept = learning(nn.Linear(32, 48, bias=False)), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(torch.randn(4, 32))
    assert [(tuple(tensor.shape), tensor.dtype) for tensor in kept] == [
        ((4, 32), torch.bfloat16), ((48, 32), torch.float32), ((48, 1), torch.float32),
    ]  # fmt: skip
    assert kept[1].data_ptr() == layer.weight.data_ptr()


def test_in_evaluation_a_layer_is_a_plain_one():
    layer = nn.Linear(32, 48)
    x = torch.randn(4, 32)
    expected = layer(x)
    learning(layer)
    assert not torch.equal(layer(x), expected)
    assert torch.equal(layer.eval()(x), expected)


def two_models(family: str = "llama"):
    plain = AutoModelForCausalLM.from_pretrained(tiny_model_path(family), dtype=torch.float32).train()
    return plain, copy.deepcopy(plain)


def loss_and_gradient(model: nn.Module, autocast: bool = True) -> tuple[float, torch.Tensor]:
    ids = torch.randint(3, 512, (2, 60), generator=torch.Generator().manual_seed(0))
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    return float(loss.detach()), torch.cat([p.grad.double().flatten() for p in model.parameters()])


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_loss_and_gradient_of_a_model_are_near_those_in_float32(family):
    plain, model = two_models(family)
    held, left = learn_in_fp8(model)
    assert (len(held), left) == (14, [])
    loss, gradient = loss_and_gradient(model)
    expected_loss, expected = loss_and_gradient(plain, autocast=False)
    assert loss == pytest.approx(expected_loss, rel=5e-3)
    # 14 products one after the other and back, each with an error of about 2^-4 / sqrt 3 at most and signs of its own.
    assert 0.02 < (gradient - expected).norm() / expected.norm() < 0.25


def test_names_and_weights_stay_and_only_the_output_layer_is_left():
    plain, model = two_models()
    weights = dict(model.named_parameters())
    held, _ = learn_in_fp8(model)
    assert {name: id(p) for name, p in model.named_parameters()} == {name: id(p) for name, p in weights.items()}
    assert list(model.state_dict()) == list(plain.state_dict())
    linear = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    assert set(linear) - set(held) == {"lm_head"}
    assert type(model.lm_head) is nn.Linear


def test_layers_of_odd_sizes_stay_in_bfloat16_and_a_model_of_nothing_else_is_refused():
    _, model = two_models()
    block = model.model.layers[0].mlp
    block.gate_proj, block.up_proj, block.down_proj = nn.Linear(64, 40), nn.Linear(64, 40), nn.Linear(40, 64)
    held, left = learn_in_fp8(model)
    assert (len(held), left) == (11, [f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")])
    loss_and_gradient(model)
    with pytest.raises(ConfigError, match=r"none of the model's 8 linear layers can be held in fp8.*Type algo\.precision=auto"):
        learn_in_fp8(two_models("gpt2")[0])


def test_checkpointed_layers_give_the_same():
    _, model = two_models()
    learn_in_fp8(model)
    loss, gradient = loss_and_gradient(model)
    ModelPatches(model).apply(Checkpointing(layers_of(model)))
    again, found = loss_and_gradient(model)
    assert again == loss
    assert torch.equal(found, gradient)


@pytest.mark.slow
def test_compiled_layers_give_the_same_and_one_input_is_rounded_once(monkeypatch):
    from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
    from torch._dynamo.backends.common import aot_autograd
    from torch._inductor.decomposition import select_decomp_table

    from hub.train.kernels import compiled

    _, model = two_models()
    learn_in_fp8(model)
    loss, gradient = loss_and_gradient(model)
    casts: list[int] = []
    kept: list[set[torch.dtype]] = []

    def count(graph, inputs):
        calls = [node for node in graph.graph.nodes if node.op == "call_function"]
        casts.append(sum(torch.float8_e4m3fn in (*call.args, *call.kwargs.values()) for call in calls))
        (output,) = (node for node in graph.graph.nodes if node.op == "output")
        values = [node.meta["val"] for node in output.args[0] if isinstance(node, torch.fx.Node)]
        kept.append({value.dtype for value in values if isinstance(value, torch.Tensor)})
        return make_boxed_func(graph.forward)

    real, before = torch.compile, compiled.num_compiled()
    torch._dynamo.reset()
    as_inductor = {"partition_fn": min_cut_rematerialization_partition, "decompositions": select_decomp_table()}
    backend = aot_autograd(fw_compiler=count, **as_inductor)
    monkeypatch.setattr(torch, "compile", lambda function: real(function, backend=backend))
    ModelPatches(model).apply(compiled.CompiledLayers(layers_of(model)))
    again, found = loss_and_gradient(model)
    assert again == pytest.approx(loss, rel=1e-6)
    assert (found - gradient).norm() < 1e-3 * gradient.norm()
    assert compiled.num_compiled() - before == 1  # both layers share one version
    assert casts[0] == 4 + 7  # the inputs of q k v, of o, of gate and up, of down; the weights
    assert torch.bfloat16 in kept[0]
    assert torch.float8_e4m3fn not in kept[0]  # weights are rounded again on the way back, and not kept a second time


@pytest.fixture
def emulated(monkeypatch):
    monkeypatch.setattr("hub.launch.preflight.has_no_gpu", lambda: False)
    monkeypatch.setattr("hub.train.setup.setup.check_gpu", lambda: None)


def run(tmp_path: Path, *overrides: str) -> Result:
    options = ["algo=sft", "algo.precision=fp8", "model=tiny", "data=tiny", "launch=inline", "algo.learning_rate=1e-3"]
    options += ["algo.max_steps=6", "algo.effective_batch_size=8", "model.dtype=bfloat16", f"output_dir={tmp_path}"]
    return launch(compose(*options, *overrides))


@pytest.mark.parametrize("options", [[], ["algo.master_weights=false"], ["model.path=tiny:qwen2"]])
def test_a_run_learns_and_its_model_is_like_any_other(tmp_path, emulated, options):
    result, plain = run(tmp_path, *options), run(tmp_path, "algo.precision=auto", *options)
    assert result.eval_loss < result.eval_loss_before - 0.5
    assert result.eval_loss == pytest.approx(plain.eval_loss, abs=0.05)
    assert result.eval_loss_before == plain.eval_loss_before  # evaluation is that of the model as it is saved
    assert [line["loss"] for line in result.metrics] != [line["loss"] for line in plain.metrics]
    found, expected = (json.loads((one.run_path / "plan.json").read_text()) for one in (result, plain))
    assert (found["precision"], found["fp8_layers"], found["fp8_layers_left_out"]) == ("fp8", 14, 0)
    assert "precision" not in expected
    for name in ("parameters", "trainable_parameters", "weights_kept_in"):
        assert found[name] == expected[name]
    saved, others = (load_file(one.model_path / "model.safetensors") for one in (result, plain))
    assert {name: (t.shape, t.dtype) for name, t in saved.items()} == {name: (t.shape, t.dtype) for name, t in others.items()}
    AutoModelForCausalLM.from_pretrained(result.model_path)
