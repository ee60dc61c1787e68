"""The loss kernel on a GPU, compared with cross entropy of all logits in float64."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="needs the package triton, which torch brings for GPUs only")

from hub.train.kernels.head import kernel_problem
from hub.train.kernels.logit_map import LogitMap
from hub.train.kernels.loss_kernel import BLOCK, losses_and_gradient

ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 6e-3}


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("size", [2, 50, 49152, BLOCK, BLOCK + 1, 128256])
@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("logit_map", [LogitMap(), LogitMap(0.0625), LogitMap(1.0, 30.0), LogitMap(0.5, 30.0)], ids=str)
def test_loss_and_gradient_are_those_of_whole_logits(dtype, size, scale, weighted, logit_map):
    torch.manual_seed(0)
    logits = (scale * torch.randn(37, size, device="cuda")).to(dtype)
    targets = torch.randint(0, size, (37,), device="cuda")
    targets[:2] = torch.tensor([0, size - 1])
    exact = logits.double().requires_grad_()
    weights = torch.randn(37, device="cuda") if weighted else None
    expected = F.cross_entropy(logit_map(exact), targets, reduction="none")
    (expected if weights is None else expected * weights).sum().backward()
    losses, gradient = losses_and_gradient(logits, targets, weights, logit_map)
    assert gradient.data_ptr() == logits.data_ptr()
    assert losses.sum().item() == pytest.approx(expected.sum().item(), rel=1e-5, abs=1e-4)
    assert torch.allclose(losses.double(), expected, rtol=1e-5, atol=1e-4)
    assert (gradient - exact.grad).norm() <= ROUNDING[dtype] * exact.grad.norm()


def test_the_kernel_is_used():
    assert kernel_problem("cuda") == ""


def test_infinite_logits_make_the_loss_infinite_or_nan_and_minus_infinity_has_no_probability():
    logits = torch.zeros(3, 100, device="cuda")
    logits[0, 5], logits[1, 5] = torch.inf, torch.nan
    logits[2, 50:] = -torch.inf
    targets = torch.tensor([1, 1, 1], device="cuda")
    assert not losses_and_gradient(logits[:1].clone(), targets[:1], None)[0].isfinite()
    assert not losses_and_gradient(logits[1:2].clone(), targets[:1], None)[0].isfinite()
    loss, gradient = losses_and_gradient(logits[2:].clone(), targets[:1], None)
    assert loss.item() == pytest.approx(3.912023, rel=1e-6)
    assert (gradient[0, 50:] == 0).all()
