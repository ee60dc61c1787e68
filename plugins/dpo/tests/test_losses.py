"""Every loss: its gradient in each layout is that of its formula, written again in float64 on plain calls of the model."""

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hub_dpo import losses
from hub_dpo.config import LOSSES, LoraDpoConfig
from hub_dpo.drift import moved
from hub_dpo.objective import MISMATCHED, KtoObjective, PairObjective
from transformers import AutoModelForCausalLM

from hub.data.samples.sample import Group, Sample, samples_of
from hub.parallel import group as ranks
from hub.parallel.session import Session
from hub.tasks.verify.gradients import OneByOne
from hub.testing import tiny_model_path
from hub.train.layout.layout import Layout
from hub.train.step import Criterion, accumulate_gradients, evaluate, log_probabilities, weigh

TOLERANCE = 1e-6
LAYOUTS = {
    "packed": Layout(10_000, True, 0, 0.0),
    "packed, pairs apart": Layout(60, True, 0, 0.0),
    "padded": Layout(90, False, 0, 0.0),
    "one by one": OneByOne(10_000, True, 0, 0.0),
}
OPTIONS = {
    **{name: {"loss": name, "beta": 0.3} for name in LOSSES},
    "exo": {"loss": "exo", "beta": 0.3, "label_smoothing": 0.1},
    "dpo, smoothed": {"loss": "dpo", "label_smoothing": 0.1},
    "robust, smoothed": {"loss": "robust", "label_smoothing": 0.1},
    "dpo, normalized": {"loss": "dpo", "beta": 2.0, "length_normalized": True},
    "dpo with answers": {"loss": "dpo", "sft_weight": 0.7},
    "simpo, defaults": {"loss": "simpo"},
    "kto, weighted": {"loss": "kto", "desirable_weight": 1.5, "undesirable_weight": 0.5},
}


@cache
def models():
    """The model, and another one near it as the reference. Each in float32, and in float64 for the formulas."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path("llama"), dtype=torch.float32).train()
    other = AutoModelForCausalLM.from_pretrained(tiny_model_path("llama"), dtype=torch.float64)
    exact = AutoModelForCausalLM.from_pretrained(tiny_model_path("llama"), dtype=torch.float64)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return model, exact, other


@cache
def pairs():
    """Six pairs of a short and a long answer to one prompt, ragged."""
    rng = np.random.default_rng(1)
    made = []
    for number in range(6):
        prompt = rng.integers(3, 512, int(rng.integers(2, 9)))
        both = []
        for role, length in (("chosen", rng.integers(2, 9)), ("rejected", rng.integers(9, 40))):
            ids = np.concatenate([prompt, rng.integers(3, 512, int(length))]).astype(np.int32)
            both.append(Sample(ids, np.arange(len(ids)) >= len(prompt), str(number), role))
        made.append(Group(tuple(both), str(number)))
    return made


def plainly(model, sample):
    """Log-probabilities of a sample's loss tokens, by a plain call."""
    ids = torch.from_numpy(sample.input_ids.astype(np.int64))
    rows = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
    return rows.gather(-1, ids[1:, None])[:, 0][torch.from_numpy(sample.loss_mask[1:])]


class Known:
    """The references, from the other model."""

    is_start, dtype = False, torch.float64

    def of(self, sample):
        with torch.no_grad():
            return float(plainly(models()[2], sample).sum())


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def formula(algo, w, l, W, L, n, m):  # noqa: E741 - as in the papers
    """The loss of one pair, from the papers. w, l: sums of the answers; W, L: of the reference; n, m: numbers of tokens."""
    b, e = algo.strength, algo.label_smoothing
    win, lose = (w - W, l - L)
    if algo.length_normalized:
        win, lose = win / n, lose / m
    p = sigmoid(b * (win - lose))
    match algo.loss:
        case "dpo":
            value = -(1 - e) * p.log() - e * (1 - p).log()
        case "robust":
            value = (-(1 - e) * p.log() + e * (1 - p).log()) / (1 - 2 * e)
        case "ipo":
            value = (win / n - lose / m - 1 / (2 * b)) ** 2
        case "hinge":
            value = torch.maximum(1 - b * (win - lose), torch.zeros_like(p))
        case "exo":
            value = p * (p / (1 - e)).log() + (1 - p) * ((1 - p) / e).log()
        case "nca":
            value = -sigmoid(b * win).log() - sigmoid(-b * win).log() / 2 - sigmoid(-b * lose).log() / 2
        case "sppo":
            value = (win - 1 / (2 * b)) ** 2 + (lose + 1 / (2 * b)) ** 2
        case "apo_zero":
            value = 1 - sigmoid(b * win) + sigmoid(b * lose)
        case "apo_down":
            value = sigmoid(b * win) + 1 - p
        case "simpo":
            gamma = algo.gamma if algo.gamma is not None else b / 2
            value = -sigmoid(b * w / n - b * l / m - gamma).log()
        case "orpo":
            odds = [x.exp() / (1 - x.exp()) for x in (w / n, l / m)]
            value = -w / n - b * sigmoid((odds[0] / odds[1]).log()).log()
        case "cpo":
            value = -sigmoid(b * (w - l)).log()
    weight = 1.0 if algo.loss == "cpo" and algo.sft_weight is None else algo.sft_weight or 0.0
    return value - weight * w / n


def expected(algo, units):
    """The step's mean loss and its gradient in float64, without the hub's code."""
    exact = models()[1]
    exact.zero_grad()
    known = Known()
    total, count, estimates, judged = 0.0, 0, [], []
    for unit in units:
        sums = [plainly(exact, sample) for sample in unit.samples]
        if algo.loss != "kto":
            (a, b), (x, y) = sums, (known.of(sample) for sample in unit.samples)
            total, count = total + formula(algo, a.sum(), b.sum(), x, y, len(a), len(b)), count + 1
            continue
        for sample, values in zip(unit.samples, sums, strict=True):
            ratio = values.sum() - known.of(sample)
            estimates.append(ratio.item()) if sample.role == MISMATCHED else judged.append((sample.role == "chosen", ratio))
    if algo.loss == "kto":
        z = max(0.0, sum(estimates) / len(estimates))
        for good, ratio in judged:
            share = algo.desirable_weight if good else algo.undesirable_weight
            total = total + share * (1 - sigmoid(algo.strength * ((ratio - z) if good else (z - ratio))))
        count = len(judged)
    loss = total / count
    loss.backward()
    return loss.item(), torch.cat([parameter.grad.flatten() for parameter in exact.parameters()])


def found(made, units, layout, world=1):
    """The same by the hub. With several ranks: each in turn, and the gradients summed."""
    model = models()[0]
    model.zero_grad()
    session = Session(ranks.Group(0, 1, 0, torch.device("cpu")), Accelerator(cpu=True), torch.float32)
    criterion = Criterion(made)
    values, _ = log_probabilities(session, model, units, layout, criterion)
    _, weights = weigh(made, units, values)
    for rank in range(world):
        each = Session(ranks.Group(rank, world, rank, torch.device("cpu")), session.accelerator, torch.float32)
        accumulate_gradients(each, model, units, layout, criterion, weights)
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    return evaluate(session, model, units, layout, criterion).loss, gradient


def make(options):
    algo = LoraDpoConfig(**options)
    references = Known() if algo.traits.reference else None
    made = KtoObjective(algo, references, 60) if algo.loss == "kto" else PairObjective(algo, references)
    return algo, made, list(made.completed(pairs()))


@pytest.mark.parametrize("name", OPTIONS)
def test_the_gradient_of_a_loss_is_that_of_its_formula_in_every_layout(name):
    algo, made, units = make(OPTIONS[name])
    loss, gradient = expected(algo, units)
    for layout, world in ((LAYOUTS["packed"], 1), (LAYOUTS["packed, pairs apart"], 2), (LAYOUTS["padded"], 1)):
        mean, by_hub = found(made, units, layout, world)
        assert mean == pytest.approx(loss, rel=1e-6)
        # sppo's weights grow with the log-ratios, and so does the rounding of float32 log-probabilities in them.
        assert (by_hub - gradient).norm() < (3 if name == "sppo" else 1) * TOLERANCE * gradient.norm()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_chosen_and_rejected_may_be_anywhere(layout):
    algo, made, units = make(OPTIONS["dpo"])
    _, gradient = expected(algo, units)
    assert (found(made, units, LAYOUTS[layout])[1] - gradient).norm() < TOLERANCE * gradient.norm()


def averaged_by_the_row(seen):
    """A packed row's tokens in place of an answer's, as one trainer had it."""

    def mistaken(pairs, algo):
        whole = (pairs.chosen_length + pairs.rejected_length).sum().expand_as(pairs.chosen_length)
        return seen(replace(pairs, chosen_length=whole, rejected_length=whole), algo)

    return mistaken


def without_end(seen):
    """The length counts the end-of-turn token, the sum does not."""
    return lambda pairs, algo: seen(replace(pairs, chosen_length=pairs.chosen_length - 1), algo)


@pytest.mark.parametrize("mistake", [averaged_by_the_row, without_end])
@pytest.mark.parametrize("name", ["ipo", "simpo", "orpo", "dpo, normalized"])
def test_wrong_averages_are_caught(monkeypatch, name, mistake):
    algo, made, units = make(OPTIONS[name])
    _, gradient = expected(algo, units)
    monkeypatch.setattr(losses, "_seen", mistake(losses._seen))
    assert (found(made, units, LAYOUTS["packed"])[1] - gradient).norm() > 1e-3 * gradient.norm()


def test_an_answer_without_its_end_and_a_mean_over_ranks_are_caught():
    algo, made, units = make(OPTIONS["dpo"])
    _, gradient = expected(algo, units)
    cut = [Group(tuple(_without_last(sample) for sample in unit.samples), unit.where) for unit in units]
    assert (found(made, cut, LAYOUTS["packed"])[1] - gradient).norm() > 1e-3 * gradient.norm()
    # Each rank alone with its own pairs, and the mean of their means: here of 4 and of 2 pairs.
    parts = [found(made, part, LAYOUTS["packed"])[1] for part in (units[:4], units[4:])]
    assert (sum(parts) / 2 - gradient).norm() > 1e-3 * gradient.norm()


def _without_last(sample):
    mask = sample.loss_mask.copy()
    mask[-1] = False
    return replace(sample, loss_mask=mask)


def test_every_loss_has_a_formula_and_a_mismatched_answer_is_of_another_prompt():
    assert losses.FORMULAS.keys() == LOSSES.keys() - {"kto"}
    _, _, units = make(OPTIONS["kto"])
    for place, unit in enumerate(units):
        asked, other = pairs()[place].samples[0], pairs()[place - 1].samples[0]
        mismatched = unit.samples[-1]
        assert mismatched.role == MISMATCHED
        prompt = int(asked.loss_mask.argmax())
        assert mismatched.input_ids[:prompt].tolist() == asked.input_ids[:prompt].tolist()
        assert mismatched.input_ids[mismatched.loss_mask].tolist() == other.input_ids[other.loss_mask].tolist()
    assert len(samples_of(units)) == 18


def test_rounding_may_move_one_short_answer_and_another_model_moves_all():
    ids = np.arange(4, dtype=np.int32)
    short = Sample(ids, np.array([False, False, True, True]), "pairs.jsonl:1", "chosen")
    rounded, other = [0.0] * 30 + [0.2], [0.2] * 31
    assert moved([(short, each) for each in rounded]).too_far(torch.bfloat16) is None
    assert "0.1 nats a token on average (allowed 0.05)" in moved([(short, each) for each in other]).too_far(torch.bfloat16)
    one = moved([(short, each) for each in [0.0] * 99 + [4.0]])
    assert one.too_far(torch.bfloat16) == "off by 2 nats a token (allowed 1)"
    assert moved([(short, math.nan)]).too_far(torch.float32) == "off by nan nats a token on average (allowed 0.0001)"


def test_the_distance_to_the_reference_is_half_the_mean_square_of_the_log_ratios_of_all_tokens():
    _, made, units = make(OPTIONS["kto"])
    made.references = Shifted()
    values = [[torch.zeros(int(each.loss_mask[1:].sum()), dtype=torch.float64) for each in unit.samples] for unit in units]
    assert made.figures([unit.samples for unit in units], values, False)["kl_per_token"] == pytest.approx(0.3**2 / 2)


class Shifted(Known):
    """References of which each token is 0.3 nats below a log-probability of 0; of mismatched answers more."""

    def tokens_of(self, sample):
        count = int(sample.loss_mask[1:].sum())
        return torch.full((count,), -9.0 if sample.role == MISMATCHED else -0.3, dtype=torch.float64)

    def of(self, sample):
        return float(self.tokens_of(sample).sum())
