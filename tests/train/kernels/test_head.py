"""The fused output layer and loss, compared with cross entropy of all logits in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from hub.data.prepare import Sample
from hub.models.patches import ModelPatches
from hub.testing import tiny_model_path
from hub.train.batch.collate import pack
from hub.train.kernels import head
from hub.train.kernels.head import FusedHead, fused_head, linear_cross_entropy, token_cross_entropies
from hub.train.losses.causal_lm import causal_lm_loss, token_log_probabilities


@pytest.mark.parametrize("weighted", [False, True], ids=["each once", "with weights"])
@pytest.mark.parametrize("rows", [1, 3, 10, 64], ids=lambda rows: f"{rows} rows of logits at a time")
def test_loss_and_gradients_are_those_of_whole_logits(monkeypatch, rows, weighted):
    torch.manual_seed(0)
    hidden, weight, bias = (torch.randn(size, requires_grad=True) for size in ((10, 16), (50, 16), (50,)))
    targets = torch.randint(0, 50, (10,))
    weights = torch.randn(10) if weighted else None
    monkeypatch.setattr(head, "CHUNK_BYTES", rows * 50 * 4 // 2)
    loss = linear_cross_entropy(hidden, weight, bias, targets, weights)
    (loss / 7).backward()
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight, bias)]
    losses = F.cross_entropy(exact[0] @ exact[1].T + exact[2], targets, reduction="none")
    expected = losses.sum() if weights is None else losses @ weights.double()
    (expected / 7).backward()
    assert loss.double().item() == pytest.approx(expected.item(), rel=1e-6)
    each = token_cross_entropies(hidden, weight, bias, targets)
    assert not each.requires_grad
    assert torch.allclose(each.double(), losses.detach(), rtol=1e-6)
    for found, right in zip((hidden, weight, bias), exact, strict=True):
        assert (found.grad - right.grad).norm() <= 1e-6 * right.grad.norm()


def test_a_gradient_of_many_chunks_is_summed_in_float32_though_the_products_are_in_bfloat16(monkeypatch):
    torch.manual_seed(0)
    hidden, weight = torch.randn(512, 16).bfloat16(), torch.randn(20, 16, requires_grad=True)
    targets = torch.randint(0, 20, (512,))
    found = []
    for chunk in (1, 10**6):
        monkeypatch.setattr(head, "CHUNK_BYTES", chunk)
        weight.grad = None
        linear_cross_entropy(hidden, weight, None, targets).backward()
        found.append(weight.grad.clone())
    assert weight.grad.dtype == torch.float32
    assert (found[0] - found[1]).norm() < 4e-3 * found[1].norm()


def test_a_frozen_weight_gets_no_gradient():
    hidden, weight = torch.randn(4, 8, requires_grad=True), torch.randn(9, 8)
    linear_cross_entropy(hidden, weight, None, torch.tensor([0, 8, 3, 3])).backward()
    assert weight.grad is None
    assert hidden.grad is not None


def test_a_model_with_it_gives_the_same_loss_and_gradients_and_its_logits_without_targets():
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path("llama"), dtype=torch.float32).train()
    rng = np.random.default_rng(0)
    samples = [Sample(rng.integers(3, 512, n).astype(np.int32), rng.random(n) < 0.5, "") for n in (30, 7, 19)]

    def gradients():
        model.zero_grad()
        loss = causal_lm_loss(model, pack(samples))
        loss.backward()
        return loss.item(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    plain, expected = gradients()
    log_probabilities = token_log_probabilities(model, pack(samples))
    assert -log_probabilities.sum().item() == pytest.approx(plain, rel=1e-6)
    logits = model(torch.arange(9)[None]).logits
    patches = ModelPatches(model)
    fused = patches.apply(FusedHead(model.get_output_embeddings()))
    assert fused_head(model) is fused
    loss, found = gradients()
    assert loss == pytest.approx(plain, rel=1e-6)
    assert (found - expected).norm() < 1e-5 * expected.norm()
    assert torch.allclose(token_log_probabilities(model, pack(samples)), log_probabilities, rtol=1e-5)
    assert torch.equal(model(torch.arange(9)[None]).logits, logits)
    patches.undo(fused)
    assert fused_head(model) is None
    assert gradients()[0] == plain
