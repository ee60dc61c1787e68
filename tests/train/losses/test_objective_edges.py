"""Objectives at the edges: constant weights, a loss that is none, and next-token loss as torch sums it."""

import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from transformers import AutoModelForCausalLM

from hub.data.samples.sample import Group, Sample
from hub.errors import PluginError
from hub.parallel.group import start_group
from hub.parallel.session import Session
from hub.testing import tiny_model_path
from hub.train import step
from hub.train.batch.collate import pack
from hub.train.layout.layout import Layout
from hub.train.losses.causal_lm import causal_lm_loss
from hub.train.losses.objective import NextToken, Objective, token_weights
from hub.train.step import Criterion, accumulate_gradients, evaluate, log_probabilities, weigh


class Contrast(Objective):
    """Made up: chosen answers count twice, rejected ones a fourth and the other way round."""

    depends_on_values = False
    roles = ("chosen", "rejected")

    def divisor(self, units):
        return len(units)

    def loss(self, units, values):
        return sum(-2 * chosen.sum() + 0.25 * rejected.sum() for chosen, rejected in values)


class TwoPasses(Contrast):
    """Contrast with the forward pass that it does without."""

    depends_on_values = True


class Shifted(Contrast):
    def loss(self, units, values):
        return super().loss(units, values) + len(units)


class Unsummed(Contrast):
    def loss(self, units, values):
        return torch.stack([chosen.sum() for chosen, _ in values])


class Detached(Contrast):
    def loss(self, units, values):
        return super().loss(units, values).detach()


class Number(Contrast):
    def loss(self, units, values):
        return 0.5


@pytest.fixture(scope="module")
def session():
    return Session(start_group(), Accelerator(cpu=True), torch.float32)


@pytest.fixture(scope="module")
def model():
    found = AutoModelForCausalLM.from_pretrained(tiny_model_path("llama"), dtype=torch.float32)
    found.train()
    return found


def sample(rng, role):
    length = int(rng.integers(5, 30))
    return Sample(rng.integers(3, 500, length).astype(np.int32), rng.random(length) < 0.7, "a.jsonl:1", role)


def pairs(num=7):
    rng = np.random.default_rng(3)
    return [Group((sample(rng, "chosen"), sample(rng, "rejected")), "a.jsonl:1") for _ in range(num)]


def gradient_and_loss(session, model, objective, units, layout):
    criterion = Criterion(objective)
    values = log_probabilities(session, model, units, layout, criterion)[0] if criterion.needs_values else None
    _, weights = weigh(objective, units, values)
    model.zero_grad()
    loss = accumulate_gradients(session, model, units, layout, criterion, weights)
    return torch.cat([p.grad.flatten() for p in model.parameters()]), float(loss)


def test_a_pass_finds_nothing_of_the_graph_of_the_one_before(session, model):
    inputs = []

    def loss(model, batch):
        assert all(tensor() is None for tensor in inputs)
        hidden = torch.ones(3, requires_grad=True)
        inputs.append(weakref.ref(hidden))
        return hidden.sum()

    accumulate_gradients(session, model, pairs(), Layout(60, True, pad_id=0, cost_ratio=0.01), Criterion(loss=loss))
    assert len(inputs) > 1


@pytest.mark.parametrize("packed", [True, False])
def test_constant_weights_need_no_second_pass_and_count_in_training_and_evaluation(session, model, monkeypatch, packed):
    monkeypatch.setattr(step, "EVALUATION_CHUNK", 3)
    units, layout = pairs(), Layout(60, packed, pad_id=0, cost_ratio=0.01)
    expected, _ = gradient_and_loss(session, model, TwoPasses(), units, layout)
    found, _ = gradient_and_loss(session, model, Contrast(), units, layout)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6)
    plain, _ = gradient_and_loss(session, model, NextToken(), units, layout)
    assert not torch.allclose(plain / plain.norm(), expected / expected.norm(), atol=1e-2)
    two_passes = evaluate(session, model, units, layout, Criterion(TwoPasses())).loss
    one_pass = evaluate(session, model, units, layout, Criterion(Contrast())).loss
    assert one_pass == pytest.approx(two_passes, rel=1e-5)


def test_constant_weights_of_a_loss_that_is_no_weighted_sum_are_refused():
    with pytest.raises(
        PluginError, match=r"Shifted.depends_on_values=False .* for values of 0 it is 7. Write depends_on_values"
    ):
        weigh(Shifted(), pairs(), None)


@pytest.mark.parametrize(
    ("objective", "what"),
    [(Unsummed(), r"a tensor \(7,\)"), (Detached(), r"a tensor \(\) without gradient"), (Number(), "0.5")],
)
def test_what_is_no_loss_is_refused_in_a_line(objective, what):
    units = pairs()
    num_tokens = sum(int(sample.loss_mask[1:].sum()) for unit in units for sample in unit.samples)
    with pytest.raises(PluginError, match=rf"{type(objective).__name__}.loss must return a scalar .* but returned {what}$"):
        token_weights(objective, [unit.samples for unit in units], torch.zeros(num_tokens))


def test_next_token_loss_is_torchs_own_sum_bit_for_bit(model):
    rng = np.random.default_rng(1)
    batch = pack([Sample(rng.integers(3, 500, 600).astype(np.int32), np.ones(600, bool), "a.jsonl:1")])
    with torch.no_grad():
        found = causal_lm_loss(model, batch)
        logits = model(batch.input_ids, position_ids=batch.position_ids, logits_to_keep=batch.loss_positions).logits[0]
        assert torch.equal(found, F.cross_entropy(logits, batch.targets, reduction="sum"))
        assert not torch.equal(found, F.cross_entropy(logits, batch.targets, reduction="none").sum()), (
            "another order of the sum"
        )
