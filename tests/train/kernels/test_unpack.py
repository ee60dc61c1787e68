"""Layers of 4 bits by the hub's own operators. tests/gpu has the kernel itself."""

import pytest
import torch

from hub.train.kernels.unpack import packed_parts, product, train_by_kernel, unpack, unpack_once, use_kernel

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
    x = torch.randn(3, 5, 128)
    expected = results(layer, x)
    train_by_kernel(layer)
    own = results(layer, x)
    undo = unpack_once(layer)
    once = results(layer, x)
    undo()
    again = results(layer, x)
    for found in (own, once, again):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_compiler_is_told_the_truth(plain_unpacking):
    layer = layer_of(True, "nf4")
    parts = packed_parts(layer.weight, layer.weight.quant_state)
    torch.library.opcheck(unpack, parts)
    torch.library.opcheck(product, (torch.randn(2, 7, 128), *parts))


@pytest.mark.parametrize("once", [False, True])
def test_evaluation_is_left_to_bitsandbytes(no_kernel, once):
    layer = layer_of(True, "nf4")
    train_by_kernel(layer)
    if once:
        unpack_once(layer)
    x = torch.randn(5, 128)
    assert torch.equal(layer.eval()(x), layer_of(True, "nf4").eval()(x))
    with pytest.raises(ImportError):
        layer.train()(x)


def test_what_the_kernel_can_not_do_stays_as_it_was():
    changed = "there are none, or something else has changed them: weights that are shared out, hooks"
    assert use_kernel(torch.nn.Linear(2, 2)) == changed
    layer = layer_of(True, "nf4")
    assert use_kernel(layer) == "their weights are packed in a way that it does not know"  # on a CPU
    assert "forward" not in vars(layer)
    layer.forward = lambda x: x
    assert use_kernel(layer) == changed
    assert unpack_once(layer) is None
