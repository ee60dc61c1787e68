"""The load-balancing loss of a step: its gradient is that of transformers on all samples at once, in every layout."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM
from zoo.zoo import zoo_model

from hub import ConfigError, compose
from hub.data.samples.sample import Sample
from hub.launch.launcher import launch
from hub.models.patches import patches_of
from hub.models.structure import layers_of
from hub.parallel.group import Group
from hub.parallel.session import Session
from hub.train.kernels.balancing import COUNTING, Balance, BalancedRouters, disagrees
from hub.train.kernels.checkpointing import Checkpointing
from hub.train.layout.layout import Layout
from hub.train.step import Criterion, train_step

COEFFICIENT = 0.3
CPU = torch.device("cpu")


def samples():
    rng = np.random.default_rng(0)
    return [Sample(rng.integers(3, 512, n).astype(np.int32), rng.random(n) < 0.7, str(n)) for n in (9, 30, 14, 21, 5)]


def loss_of_transformers(model):
    """All samples in one padded call, with the loss that the family adds."""
    rows = samples()
    ids = torch.zeros(len(rows), 30, dtype=torch.int64)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, sample in enumerate(rows):
        tokens = torch.from_numpy(sample.input_ids.astype(np.int64))
        ids[row, : len(sample)], mask[row, : len(sample)] = tokens, 1
        labels[row, : len(sample)] = torch.where(torch.from_numpy(sample.loss_mask), tokens, -100)
    model.router_aux_loss_coef = COEFFICIENT
    found = model(input_ids=ids, attention_mask=mask, labels=labels, output_router_logits=True, use_cache=False)
    return found.loss, found.aux_loss


class Gradients(torch.optim.SGD):
    """Keeps the gradients of its step and changes nothing."""

    def step(self, closure=None):
        self.kept = [None if p.grad is None else p.grad.clone() for group in self.param_groups for p in group["params"]]


@pytest.mark.parametrize(("family", "packed"), [("mixtral", True), ("qwen3_moe", True), ("gpt_oss", False)])
def test_the_gradient_is_that_of_transformers_on_all_samples_at_once(family, packed):
    how = {"attn_implementation": "eager", "experts_implementation": "eager"}
    model = AutoModelForCausalLM.from_pretrained(zoo_model(family), dtype=torch.float64, **how).train()
    loss, balancing = loss_of_transformers(model)
    loss.backward()
    wanted = [p.grad.clone() for p in model.parameters()]
    balance = Balance(COEFFICIENT, model.num_experts, model.num_experts_per_tok, CPU)
    patches_of(model).apply(BalancedRouters(model, balance))
    patches_of(model).apply(Checkpointing(layers_of(model)[:1]))
    assert disagrees(model, balance, 512, CPU) == ""
    session = Session(Group(0, 1, 0, CPU), Accelerator(cpu=True), torch.float32)
    units = samples()
    for max_tokens in (1000, 32):
        optimizer = Gradients(model.parameters(), lr=1.0)
        layout, criterion = Layout(max_tokens, packed, 0, 0.0), Criterion(balance=balance)
        step = train_step(session, model, optimizer, units, layout, None, criterion)
        assert criterion.balance_figures == {"load_balancing_loss": pytest.approx(float(balancing), rel=1e-5)}
        assert step.loss + COEFFICIENT * balance.loss == pytest.approx(float(loss), rel=1e-5)
        for found, expected in zip(optimizer.kept, wanted, strict=True):
            assert (found - expected).norm() <= 1e-5 * expected.norm() + 1e-12
        without = Gradients(model.parameters(), lr=1.0)
        train_step(session, model, without, units, layout, None, Criterion())
        assert max((a - b).norm() / b.norm() for a, b in zip(without.kept, wanted, strict=True)) > 1e-2


def test_a_micro_batch_without_samples_counts_for_nothing():
    model = AutoModelForCausalLM.from_pretrained(zoo_model("mixtral"), dtype=torch.float32)
    balance = Balance(COEFFICIENT, 4, 2, CPU)
    patches_of(model).apply(BalancedRouters(model, balance))
    (batch,) = Layout(1000, True, 0, 0.0).micro_batches(samples(), 0, 1)
    counted = []
    for one in (replace(batch, samples=()), batch):
        with torch.no_grad(), balance.of(one, COUNTING):
            model(input_ids=one.input_ids, position_ids=one.position_ids, use_cache=False)
        counted.append(float(balance.tallies[0].sum()))
    assert counted == [0.0, 79 * 2 * 2]  # tokens, experts of each, layers


def test_a_run_adds_it_and_says_so_and_refuses_it_where_there_is_none(tmp_path):
    words = ["algo=sft", "data=tiny", "launch=inline", "model.dtype=float32", "algo.max_steps=1", "data.eval_fraction=0",
             "algo.effective_batch_size=2", f"output_dir={tmp_path}", "algo.router_aux_loss_coef=0.1"]  # fmt: skip
    result = launch(compose(*words, f"model.path={zoo_model('mixtral')}"))
    plan = json.loads((result.run_path / "plan.json").read_text())
    assert (plan["load_balancing_loss"], plan["load_balancing_loss_because"]) == (0.1, "algo.router_aux_loss_coef=0.1")
    assert 2.0 <= result.metrics[0]["load_balancing_loss"] < 4.0  # 2 of 4 experts: 2 if all are chosen alike
    with pytest.raises(ConfigError, match=r"algo\.router_aux_loss_coef=0\.1: the model has no experts"):
        launch(compose(*words, f"model.path={zoo_model('llama')}"))
