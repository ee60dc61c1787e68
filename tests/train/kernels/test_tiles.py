"""A tiled MLP: the same numbers, in plain layers and in 4-bit ones."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from hub.models.patches import ModelPatches
from hub.models.structure import layers_of
from hub.testing import tiny_model_path
from hub.train.kernels.tiles import TiledMlp


def layer_of(quantized: bool):
    if quantized:
        bitsandbytes = pytest.importorskip("bitsandbytes", reason="the package bitsandbytes is not installed")
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path("llama"), dtype=torch.float32).train()
    layer = layers_of(model)[0]
    for name in ("gate_proj", "up_proj", "down_proj") if quantized else ():
        plain = getattr(layer.mlp, name)
        part = bitsandbytes.nn.Linear4bit(plain.in_features, plain.out_features, bias=False, compute_dtype=torch.float32)
        part.load_state_dict(plain.state_dict())
        setattr(layer.mlp, name, part.to("cpu"))
    return layer


@pytest.mark.parametrize("quantized", [False, True])
def test_output_and_gradients_are_those_of_all_tokens_at_once(quantized):
    torch.manual_seed(0)
    layer = layer_of(quantized)
    calls = []
    layer.mlp.act_fn.register_forward_hook(lambda module, args, output: calls.append(args[0].shape[-2]))

    def results(tokens: int) -> list[torch.Tensor]:
        torch.manual_seed(tokens)
        hidden = torch.randn(2, tokens, layer.mlp.hidden_size, requires_grad=True)
        output = layer.mlp(hidden)
        weights = [p for p in layer.mlp.parameters() if p.requires_grad]
        return [output, *torch.autograd.grad(output.square().sum(), [hidden, *weights])]

    lengths = (1, 19, 20, 39, 61)
    whole = [results(tokens) for tokens in lengths]
    calls.clear()
    patches = ModelPatches(layer)
    patch = patches.apply(TiledMlp(layer, 40))
    tiled = [results(tokens) for tokens in lengths]
    assert calls == [1, 19, 5, 5, 5, 5, 9, 9, 9, 12, 15, 15, 15, 16]
    patches.undo(patch)
    calls.clear()
    again = results(61)
    assert calls == [61]
    for found, expected in zip([*tiled, again], [*whole, whole[-1]], strict=True):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_evaluation_and_other_kinds_of_layers_are_left_alone():
    layer = layer_of(quantized=False)
    ModelPatches(layer).apply(TiledMlp(layer, 20))
    calls = []
    layer.mlp.act_fn.register_forward_hook(lambda module, args, output: calls.append(args[0].shape[-2]))
    layer.eval()
    layer.mlp(torch.randn(1, 50, layer.mlp.hidden_size))
    assert calls == [50]
    layer.train()
    layer.mlp(torch.randn(50, layer.mlp.hidden_size))  # without rows
    assert len(calls) == 2
    other = torch.nn.Module()
    other.mlp = torch.nn.Linear(4, 4)
    patches = ModelPatches(other)
    patch = patches.apply(TiledMlp(other, 20))
    assert "forward" not in vars(other.mlp)
    patches.undo(patch)
    assert "forward" not in vars(other.mlp)
