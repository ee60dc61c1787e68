"""Optimizers step by step, against their formulas in float64."""

import pytest
import torch

from hub.config.schema import AlgoConfig
from hub.errors import ConfigError
from hub.train.adamw_bf16 import StochasticAdamW
from hub.train.optim import make_optimizer, make_scheduler, parameter_groups, restore_schedule
from hub.train.schedule import rate_of_step

CPU = torch.device("cpu")
RATE, DECAY, STEPS = 0.02, 0.3, 4


def sgd(weight: torch.Tensor, gradients: list[torch.Tensor], decay: float) -> torch.Tensor:
    for gradient in gradients:
        weight = weight - RATE * (gradient + decay * weight)
    return weight


def adafactor(weight: torch.Tensor, gradients: list[torch.Tensor], decay: float) -> torch.Tensor:
    """Algorithm 4 and 5 of arXiv 1804.04235 with a rate of its own, and decay as in AdamW."""
    rows = columns = whole = torch.zeros(())
    for step, gradient in enumerate(gradients, 1):
        beta, square = 1 - step**-0.8, gradient.square() + 1e-30
        if weight.ndim > 1:
            rows = beta * rows + (1 - beta) * square.mean(-1)
            columns = beta * columns + (1 - beta) * square.mean(-2)
            second = rows[:, None] * columns[None] / rows.mean()
        else:
            second = whole = beta * whole + (1 - beta) * square
        update = gradient / second.sqrt()
        update /= max(1.0, float(update.square().mean().sqrt()))
        weight = weight - RATE * decay * weight - RATE * update
    return weight


@pytest.mark.parametrize("formula", [sgd, adafactor])
def test_an_optimizer_follows_its_formula_and_vectors_do_not_decay(formula):
    torch.manual_seed(0)
    named = [("matrix", torch.nn.Parameter(torch.randn(3, 5))), ("norm", torch.nn.Parameter(torch.randn(4)))]
    frozen = torch.nn.Parameter(torch.randn(2, 2), requires_grad=False)
    starts = [weight.detach().double() for _, weight in named]
    cfg = AlgoConfig(optimizer=formula.__name__, learning_rate=RATE)
    groups = parameter_groups([*named, ("frozen", frozen)], DECAY)
    assert sum(len(group["params"]) for group in groups) == 2
    optimizer = make_optimizer(cfg, groups, CPU)
    gradients: list[list[torch.Tensor]] = [[], []]
    for _ in range(STEPS):
        for (_, weight), seen in zip(named, gradients, strict=True):
            weight.grad = torch.randn_like(weight)
            seen.append(weight.grad.double())
        optimizer.step()
    for (_, weight), start, seen, decay in zip(named, starts, gradients, (DECAY, 0.0), strict=True):
        torch.testing.assert_close(weight.detach().double(), formula(start, seen, decay), rtol=0, atol=2e-6)


def test_a_group_without_weights_is_left_out_and_other_optimizers_need_a_gpu():
    vector = torch.nn.Parameter(torch.zeros(3))
    (group,) = make_optimizer(AlgoConfig(), parameter_groups([("bias", vector)], DECAY), CPU).param_groups
    assert (group["params"], group["weight_decay"], group["fused"]) == ([vector], 0.0, False)
    for name in ("adamw_8bit", "paged_adamw", "paged_adamw_8bit"):
        with pytest.raises(ConfigError, match=rf"^algo.optimizer={name} needs a CUDA GPU. Type algo.optimizer=adamw$"):
            make_optimizer(AlgoConfig(optimizer=name), parameter_groups([("bias", vector)], DECAY), CPU)


@pytest.mark.parametrize("seed", [0, 7])
def test_the_seed_of_the_run_decides_how_bfloat16_is_rounded(seed):
    weights = [torch.nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16)) for _ in range(2)]
    cfg = AlgoConfig(seed=seed, learning_rate=1e-3, torch_compile="layers")
    ours = make_optimizer(cfg, parameter_groups([("w", weights[0])], 0.0), CPU)
    groups = [{"params": [weights[1]], "weight_decay": 0.0}]
    plain = StochasticAdamW(
        groups, lr=1e-3, betas=(cfg.adam_beta1, cfg.adam_beta2), eps=cfg.adam_epsilon, seed=seed, compiled=False
    )
    for weight, optimizer in zip(weights, (ours, plain), strict=True):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert torch.equal(*weights)
    assert weights[0].unique().numel() == 2


@pytest.mark.parametrize(("before", "after"), [("reduce_lr_on_plateau", "linear"), ("linear", "reduce_lr_on_plateau")])
def test_a_schedule_of_another_kind_goes_on_at_the_step_of_the_checkpoint(before, after):
    schedulers = []
    for name in (before, after):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=1.0)
        schedulers.append(make_scheduler(AlgoConfig(lr_scheduler=name, learning_rate=1.0, warmup_steps=0), optimizer, 10))
    for _ in range(3):
        schedulers[0].step()
    restore_schedule(schedulers[1], schedulers[0].state_dict())
    counts = [[one.state_dict()[name] for name in ("last_epoch", "_step_count")] for one in schedulers]
    assert counts[0] == counts[1]
    (group,) = schedulers[1].optimizer.param_groups
    linear = rate_of_step(AlgoConfig(lr_scheduler="linear", warmup_steps=0), 10)
    assert group["lr"] == pytest.approx(1.0 if after == "reduce_lr_on_plateau" else linear(4))
