"""Objectives that are not next-token training, on one process. tests/train/test_layouts.py has the layouts."""

from functools import partial

import hub_sft.recipe
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM

from hub.data.samples.sample import Sample
from hub.parallel.group import Group
from hub.parallel.session import Session
from hub.testing import tiny_model_path
from hub.train.layout.layout import Layout
from hub.train.losses.objective import NextToken, Objective
from hub.train.recipe import Recipe
from hub.train.step import Criterion, accumulate_gradients, evaluate, log_probabilities, weigh


class LastTokenTwice(Objective):
    """Linear: cross entropy in which the last token of a sample counts twice."""

    depends_on_values = False

    def divisor(self, units):
        return len(units)

    def loss(self, units, values):
        return -sum(value.sum() + value[-1] for (value,) in values)


class NextTokenDoubled(NextToken):
    """Inherits all but the loss of next-token training."""

    def loss(self, units, values):
        return 2 * super().loss(units, values)


class SquaredMean(Objective):
    """Depends on values: the square of a sample's mean log-probability."""

    def divisor(self, units):
        return len(units)

    def loss(self, units, values):
        return sum(value.mean().square() for (value,) in values)


@pytest.mark.parametrize(
    "objective", [LastTokenTwice(), NextTokenDoubled(), SquaredMean()], ids=lambda objective: type(objective).__name__
)
def test_gradient_and_evaluation_are_those_of_the_loss_itself(objective):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path("llama"), dtype=torch.float32).train()
    rng = np.random.default_rng(0)
    samples = [Sample(rng.integers(3, 512, n).astype(np.int32), rng.random(n) < 0.7, str(n)) for n in range(9, 30, 3)]
    for sample in samples:
        sample.loss_mask[-1] = True
    session = Session(Group(0, 1, 0, torch.device("cpu")), Accelerator(cpu=True), torch.float32)
    layout, criterion = Layout(40, True, 0, 0.0), Criterion(objective)
    mean = evaluate(session, model, samples, layout, criterion).loss
    values = log_probabilities(session, model, samples, layout, criterion)[0] if criterion.needs_values else None
    accumulate_gradients(session, model, samples, layout, criterion, weigh(objective, samples, values)[1])
    found = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    model.double().zero_grad()
    direct = []
    for sample in samples:
        ids = torch.from_numpy(sample.input_ids.astype(np.int64))
        rows = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
        direct.append([rows.gather(-1, ids[1:, None])[:, 0][torch.from_numpy(sample.loss_mask[1:])]])
    units = [(sample,) for sample in samples]
    loss = objective.loss(units, direct) / objective.divisor(units)
    loss.backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert mean == pytest.approx(loss.item(), rel=1e-6)
    assert (found - expected).norm() < 2e-6 * expected.norm()


@pytest.mark.parametrize("objective", [LastTokenTwice(), SquaredMean()], ids=lambda objective: type(objective).__name__)
def test_verify_and_training_run_any_objective(hub, monkeypatch, objective):
    monkeypatch.setattr(hub_sft.recipe, "Recipe", partial(Recipe, objective=objective))
    options = ["algo=sft", "model=tiny", "data=tiny", "algo.effective_batch_size=8", "launch=inline"]
    verified = hub("verify", *options)
    assert verified.code == 0, verified.err
    trained = hub("train", *options, "algo.max_steps=6", "algo.learning_rate=1e-3")
    assert trained.code == 0, trained.err
    before, after = (float(word) for word in trained.out.split("held-out loss ")[-1].split(",")[0].split(" -> "))
    assert after < before
