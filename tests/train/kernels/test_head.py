"""The fused output layer and loss, compared with cross entropy of all logits in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM
from zoo.zoo import zoo_model

from hub.data.prepare import Sample
from hub.models.patches import ModelPatches
from hub.testing import tiny_model_path
from hub.train.batch.collate import pack
from hub.train.kernels import head
from hub.train.kernels.head import FusedHead, fused_head, linear_cross_entropy, token_cross_entropies
from hub.train.kernels.logit_map import LogitMap, measured_map
from hub.train.losses.causal_lm import causal_lm_loss, token_log_probabilities


@pytest.mark.parametrize("weighted", [False, True], ids=["each once", "with weights"])
@pytest.mark.parametrize("rows", [1, 3, 10, 64], ids=lambda rows: f"{rows} rows of logits at a time")
@pytest.mark.parametrize("logit_map", [LogitMap(), LogitMap(0.3), LogitMap(1.0, 4.0), LogitMap(0.3, 2.0)], ids=str)
def test_loss_and_gradients_are_those_of_whole_logits(monkeypatch, rows, weighted, logit_map):
    torch.manual_seed(0)
    hidden, weight, bias = (torch.randn(size, requires_grad=True) for size in ((10, 16), (50, 16), (50,)))
    targets = torch.randint(0, 50, (10,))
    weights = torch.randn(10) if weighted else None
    monkeypatch.setattr(head, "CHUNK_BYTES", rows * 50 * 4 // 2)
    loss = linear_cross_entropy(hidden, weight, bias, targets, weights, logit_map)
    (loss / 7).backward()
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight, bias)]
    logits = (exact[0] @ exact[1].T + exact[2]) * logit_map.scale
    logits = logits if logit_map.cap is None else (logits / logit_map.cap).tanh() * logit_map.cap
    losses = F.cross_entropy(logits, targets, reduction="none")
    expected = losses.sum() if weights is None else losses @ weights.double()
    (expected / 7).backward()
    assert loss.double().item() == pytest.approx(expected.item(), rel=1e-6)
    each = token_cross_entropies(hidden, weight, bias, targets, logit_map)
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


MAPS = {"llama": LogitMap(), "gemma2": LogitMap(1.0, 0.5), "cohere": LogitMap(0.0625), "granite": LogitMap(0.5)}
"""What some families make of their output layer's result. The cap is far below their logits, so that it shows."""


@pytest.mark.parametrize("family", MAPS)
def test_a_model_with_it_gives_the_same_loss_and_gradients_and_its_logits_without_targets(family):
    options = {"final_logit_softcapping": 0.5, "attn_implementation": "eager"} if family == "gemma2" else {}
    folder = tiny_model_path(family) if family == "llama" else zoo_model(family)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).train()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(10)
    rng = np.random.default_rng(0)
    samples = [Sample(rng.integers(3, 512, n).astype(np.int32), rng.random(n) < 0.5, "") for n in (30, 7, 19)]
    weights = torch.from_numpy(rng.normal(size=len(pack(samples).targets)).astype(np.float32))

    def gradients():
        model.zero_grad()
        loss = causal_lm_loss(model, replace(pack(samples), weights=weights))
        loss.backward()
        return loss.item(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    plain, expected = gradients()
    log_probabilities = token_log_probabilities(model, pack(samples))
    assert -(log_probabilities @ weights).item() == pytest.approx(plain, rel=1e-5)
    logits = model(torch.arange(9)[None]).logits
    patches = ModelPatches(model)
    head = model.get_output_embeddings()
    found_map = measured_map(patches, head, lambda: model(torch.arange(9)[None]).logits)
    assert found_map.scale == pytest.approx(MAPS[family].scale, rel=1e-6)
    assert found_map.cap == (MAPS[family].cap and pytest.approx(MAPS[family].cap, rel=1e-6))
    fused = patches.apply(FusedHead(head, model, found_map))
    assert fused_head(model) is fused
    loss, found = gradients()
    assert loss == pytest.approx(plain, rel=1e-5)
    assert (found - expected).norm() < 1e-5 * expected.norm()
    assert torch.allclose(token_log_probabilities(model, pack(samples)), log_probabilities, rtol=1e-5)
    assert torch.equal(model(torch.arange(9)[None]).logits, logits)
    patches.undo(fused)
    assert fused_head(model) is None
    assert gradients()[0] == plain


@pytest.mark.parametrize(
    "change", [lambda z: z + 1, lambda z: z[..., :9], lambda z: z.relu(), lambda z: z * torch.arange(50.0)]
)
def test_what_is_no_scale_and_no_soft_cap_is_not_taken_for_one(change):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path("llama"), dtype=torch.float32)
    head = torch.nn.Linear(8, 50)
    assert measured_map(ModelPatches(model), head, lambda: change(head(torch.zeros(1, 4, 8)))) is None
    found = measured_map(ModelPatches(model), head, lambda: head(torch.zeros(1, 4, 8)).mul(3).tanh())
    assert (found.scale, found.cap) == pytest.approx((3.0, 1.0), rel=1e-6)
