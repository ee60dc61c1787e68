"""4-bit layers with the hub's own operators. tests/gpu has the kernel itself."""

import pytest
import torch

from hub.models.patches import ModelPatches
from hub.train.kernels.unpack import UnpackByKernel, UnpackOnce, packed_parts, product, unpack, use_kernel

bitsandbytes = pytest.importorskip("bitsandbytes", reason="the package bitsandbytes is not installed")


def layer_of(nested: bool, kind: str, bias: bool = False):
    torch.manual_seed(0)
    plain = torch.nn.Linear(128, 64, bias=bias)
    layer = bitsandbytes.nn.Linear4bit(
        128, 64, bias=bias, compute_dtype=torch.float32, compress_statistics=nested, quant_type=kind
    )
    layer.load_state_dict(plain.state_dict())
    return layer.to("cpu").train().requires_grad_(False)


def results(layer, x):
    x = x.clone().requires_grad_()
    output = layer(x)
    return [output, *torch.autograd.grad(output.square().sum(), x)]


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [True, False])
def test_outputs_and_gradients_are_those_of_bitsandbytes(plain_unpacking, nested, kind):
    layer = layer_of(nested, kind, bias=True)
    x = torch.randn(3, 1, 5, 128)  # a tile, which `UnpackOnce` takes
    expected = results(layer, x)
    patches = ModelPatches(layer)
    patches.apply(UnpackByKernel([layer]))
    own = results(layer, x)
    patch = patches.apply(UnpackOnce([layer]))
    once = results(layer, x)
    patches.undo(patch)
    again = results(layer, x)
    for found in (own, once, again):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_only_tiles_keep_a_dequantized_weight_for_the_backward_pass(plain_unpacking):
    layer = layer_of(True, "nf4")
    patches = ModelPatches(layer)
    patches.apply(UnpackByKernel([layer]))
    patches.apply(UnpackOnce([layer]))

    def saves_weight(x):
        shapes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: shapes.append(tensor.shape) or tensor, lambda tensor: tensor
        ):
            layer(x.requires_grad_())
        return any(shape in ((64, 128), (128, 64)) for shape in shapes)

    assert saves_weight(torch.randn(3, 1, 5, 128))
    assert not saves_weight(torch.randn(3, 5, 128))


def test_a_compiler_is_told_the_truth(plain_unpacking):
    layer = layer_of(True, "nf4")
    parts = packed_parts(layer.weight, layer.weight.quant_state)
    torch.library.opcheck(unpack, parts)
    torch.library.opcheck(product, (torch.randn(2, 7, 128), *parts))


@pytest.mark.parametrize("once", [False, True])
def test_evaluation_is_left_to_bitsandbytes(no_kernel, once):
    layer = layer_of(True, "nf4")
    patches = ModelPatches(layer)
    patches.apply(UnpackByKernel([layer]))
    if once:
        patches.apply(UnpackOnce([layer]))
    x = torch.randn(5, 128)
    assert torch.equal(layer.eval()(x), layer_of(True, "nf4").eval()(x))
    with pytest.raises(ImportError):
        layer.train()(x)


def test_layers_that_the_kernel_does_not_support_stay_as_they_are():
    changed = "there are none, or their forward pass is patched already (sharded weights, hooks)"
    linear = torch.nn.Linear(2, 2)
    assert use_kernel(ModelPatches(linear), linear) == changed
    layer = layer_of(True, "nf4")
    patches = ModelPatches(layer)
    assert use_kernel(patches, layer) == "their weights are packed in a format that it does not support"  # on a CPU
    assert patches.plan()["unpacking"] == "bitsandbytes"
    assert "forward" not in vars(layer)
    layer.forward = forward = lambda x: x
    assert use_kernel(patches, layer) == changed
    patches.apply(UnpackOnce([layer]))
    assert vars(layer)["forward"] is forward
