"""4-bit weights dequantized by the hub's own kernel: bit-equal to bitsandbytes' numbers."""

import json

import pytest
import torch

from hub import compose
from hub.launch.launcher import launch
from hub.models.patches import ModelPatches
from hub.train.kernels.unpack import UnpackByKernel, UnpackOnce, packed_parts, unpack

bitsandbytes = pytest.importorskip("bitsandbytes", reason="the package bitsandbytes is not installed")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize(("shape", "block"), [((4096, 14336), 64), ((72, 328), 64), ((1, 8), 64), ((333, 1000), 4096)])
def test_unpacked_weights_are_those_of_bitsandbytes(shape, block, nested, kind, dtype):
    torch.manual_seed(0)
    weight = torch.randn(shape, device="cuda", dtype=dtype) * torch.logspace(-6, 3, shape[1], device="cuda").to(dtype)
    packed, state = bitsandbytes.functional.quantize_4bit(weight, blocksize=block, compress_statistics=nested, quant_type=kind)
    expected = bitsandbytes.functional.dequantize_4bit(packed, state)
    assert torch.equal(unpack(*packed_parts(packed, state)), expected)


@pytest.mark.parametrize("bias", [False, True])
def test_outputs_and_gradients_are_those_of_bitsandbytes(bias):
    torch.manual_seed(0)
    plain = torch.nn.Linear(512, 256, bias=bias, dtype=torch.bfloat16)
    layer = bitsandbytes.nn.Linear4bit(512, 256, bias=bias, compute_dtype=torch.bfloat16, quant_type="nf4")
    layer.load_state_dict(plain.state_dict())
    layer = layer.cuda().train().requires_grad_(False)
    # So many tokens that bitsandbytes unpacks too, in place of a product with packed weights.
    x = torch.randn(4096, 512, device="cuda", dtype=torch.bfloat16)

    def results() -> list[torch.Tensor]:
        given = x.clone().requires_grad_()
        output = layer(given)
        return [output, *torch.autograd.grad(output.float().square().sum(), given)]

    expected = results()
    patches = ModelPatches(layer)
    patches.apply(UnpackByKernel([layer]))
    own = results()
    patches.apply(UnpackOnce([layer]))
    for found in (own, results()):
        for one, other in zip(found, expected, strict=True):
            assert float((one - other).norm() / other.norm()) < 1e-2


def test_a_run_uses_it(tmp_path):
    options = ("algo=qlora_sft", "model=tiny", "data=tiny", "launch=inline", "algo.max_steps=2", f"output_dir={tmp_path}")
    plan = json.loads((launch(compose(*options)).run_path / "plan.json").read_text())
    assert plan["unpacking"] == "the hub's kernel", plan["unpacking_because"]
