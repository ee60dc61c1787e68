"""Products of experts on a GPU: torch's grouped kernel against a loop in float64, and compiled layers with such adapters."""

import json

import pytest
import torch

from hub import compose
from hub.launch.launcher import launch
from hub.models.four_bit_tensor import in_mxfp4, in_nf4, unpacked
from hub.train.kernels.experts import Factors, _linear
from hub.train.kernels.grouped import group_ends, grouped_product, is_native
from hub.train.kernels.grouped_four_bit import grouped_product_in_4_bits, parts_of
from hub.train.kernels.unpack import unpack_by_kernel

LENGTHS = (37, 0, 200, 1)
"""Tokens of each expert. One has none."""


@pytest.mark.parametrize("rank", [16, 3])
def test_the_grouped_kernel_gives_what_a_loop_gives_forward_and_backward(rank):
    torch.manual_seed(0)
    groups = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS)).cuda()

    def draw(*shape, scale=1.0):
        return (scale * torch.randn(shape, device="cuda")).bfloat16().requires_grad_()

    x, weight = draw(sum(LENGTHS), 128), draw(len(LENGTHS), 96, 128, scale=0.1).detach()
    first, second = draw(len(LENGTHS), 128, rank, scale=0.1), draw(len(LENGTHS), rank, 96, scale=0.1)
    seed = torch.randn(sum(LENGTHS), 96, device="cuda")
    ends = group_ends(groups, len(LENGTHS))
    assert ends.tolist() == [37, 37, 237, 238]
    assert is_native(x, (128, 96))

    experts = torch.nn.Module()
    experts.is_transposed, experts.has_bias, experts.has_gate, experts.up_proj = False, False, False, weight
    result = _linear(experts, "up_proj", x, groups, ends, [Factors(first, second, 2.0)])
    found = [result, *torch.autograd.grad(result, [x, first, second], seed.bfloat16())]

    exact = [tensor.detach().double().requires_grad_() for tensor in (x, first, second)]
    rows, a, b = exact
    wide = weight.double()
    expected = torch.stack([row @ wide[e].T + 2.0 * (row @ a[e]) @ b[e] for row, e in zip(rows, groups.tolist(), strict=True)])
    wanted = [expected, *torch.autograd.grad(expected, exact, seed.bfloat16().double())]
    for one, other in zip(found, wanted, strict=True):
        assert (one.double() - other).norm() < 1e-2 * other.norm()
    assert not found[2][1].any()  # the expert without tokens
    assert not found[3][1].any()


def test_other_sizes_and_types_take_the_loop():
    ends = torch.tensor([2, 5], dtype=torch.int32, device="cuda")
    for dtype, features in ((torch.float32, 16), (torch.float64, 16), (torch.bfloat16, 5)):
        rows = torch.randn(5, features, device="cuda", dtype=dtype)
        matrices = torch.randn(2, features, 16, device="cuda", dtype=dtype)
        assert not is_native(rows, matrices.shape[1:])
        expected = torch.cat([rows[:2] @ matrices[0], rows[2:] @ matrices[1]])
        assert torch.allclose(grouped_product(rows, matrices, ends), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("form", ["nf4", "mxfp4"])
def test_products_in_4_bits_are_those_of_the_dequantized_matrices(form):
    torch.manual_seed(0)
    groups = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS)).cuda()
    ends = group_ends(groups, len(LENGTHS))
    if form == "nf4":
        packed = in_nf4((0.1 * torch.randn(len(LENGTHS), 96, 128, device="cuda")).bfloat16())
    else:
        blocks = torch.randint(0, 256, (len(LENGTHS), 96, 4, 16), dtype=torch.uint8, device="cuda")
        packed = in_mxfp4(
            blocks, torch.randint(118, 124, blocks.shape[:3], dtype=torch.uint8, device="cuda"), torch.bfloat16
        ).mT
    full = packed.dequantized()  # (experts, out, in)
    assert torch.equal(unpack_by_kernel(*parts_of(packed, by_kernel=True)), unpacked(packed.parts))
    assert torch.equal(full.cpu(), packed.cpu().dequantized())
    x = torch.randn(sum(LENGTHS), 128, device="cuda").bfloat16().requires_grad_()
    seed = torch.randn(sum(LENGTHS), 96, device="cuda").bfloat16()
    for by_kernel in (True, False):
        result = grouped_product_in_4_bits(x, parts_of(packed, by_kernel), ends, True)
        (found,) = torch.autograd.grad(result, x, seed)
        plain = grouped_product(x, full.mT, ends)
        (wanted,) = torch.autograd.grad(plain, x, seed)
        assert torch.equal(result, plain)
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("algorithm", ["lora_sft", "qlora_sft"])
@pytest.mark.parametrize("checkpointing", ["none", "all"])
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_experts_learn_in_compiled_layers_and_nothing_is_compiled_after_the_first_step(
    tmp_path, family, checkpointing, algorithm
):
    if algorithm == "qlora_sft":
        pytest.importorskip("bitsandbytes")
    options = [f"algo={algorithm}", f"model.path=tiny:{family}", "data=tiny", "launch=inline", "algo.torch_compile=layers",
               f"algo.gradient_checkpointing={checkpointing}", "algo.max_tokens_per_gpu=700", "algo.effective_batch_size=16",
               "algo.max_steps=15", "algo.num_epochs=9", "algo.learning_rate=1e-2", f"output_dir={tmp_path}"]  # fmt: skip
    result = launch(compose(*options))
    plan = json.loads((result.run_path / "plan.json").read_text())
    assert (plan["compiled"], plan["expert_adapters"]) == (True, "grouped")
    assert plan.get("unpacking_of_experts") == ("the hub's kernel" if algorithm == "qlora_sft" else None)
    assert len({line["graphs_compiled"] for line in result.metrics}) == 1
    assert result.metrics[-1]["loss"] < result.metrics[0]["loss"] - 0.2


@pytest.mark.parametrize("checkpointing", ["none", "all"])
def test_the_load_balancing_loss_is_in_compiled_layers_too(tmp_path, checkpointing):
    words = ["algo=sft", "model.path=tiny:mixtral", "data=tiny", "launch=inline", "algo.router_aux_loss_coef=1",
             f"algo.gradient_checkpointing={checkpointing}", "algo.max_tokens_per_gpu=700", "algo.effective_batch_size=16",
             "algo.max_steps=12", "algo.num_epochs=9", "algo.learning_rate=1e-2", "data.eval_fraction=0"]  # fmt: skip
    compiled, plain = (
        launch(compose(*words, f"algo.torch_compile={how}", f"output_dir={tmp_path}/{how}")).metrics
        for how in ("layers", "none")
    )
    assert len({line["graphs_compiled"] for line in compiled}) == 1
    for name in ("loss", "load_balancing_loss", "grad_norm"):
        assert compiled[0][name] == pytest.approx(plain[0][name], rel=2e-2)
    assert compiled[-1]["load_balancing_loss"] < compiled[0]["load_balancing_loss"] - 0.02
