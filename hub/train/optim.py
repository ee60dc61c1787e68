"""Optimizers by name, and the scheduler of the learning rate."""

import warnings
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, TypedDict

import torch
from torch.optim.lr_scheduler import LambdaLR

from hub.config.schema import AlgoConfig
from hub.errors import ConfigError
from hub.train.adamw_bf16 import StochasticAdamW
from hub.train.schedule import Adaptive, rate_of_step, schedule_problems


class AdamOptions(TypedDict):
    """Keyword arguments of every optimizer of the Adam family."""

    lr: float
    betas: tuple[float, float]
    eps: float


def parameter_groups(named: Iterable[tuple[str, torch.nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    """The weights that train, in two groups: with weight decay for matrices, without for vectors (biases, norms)."""
    trained = [parameter for _, parameter in named if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def make_optimizer(cfg: AlgoConfig, groups: list[dict[str, Any]], device: torch.device) -> torch.optim.Optimizer:
    """The optimizer of `algo.optimizer`. AdamW rounds stochastically if any trained weight is in bfloat16.

    Raises:
        ConfigError: it can't run on this device.
    """
    groups = [group for group in groups if group["params"]]
    adam: AdamOptions = {"lr": cfg.learning_rate, "betas": (cfg.adam_beta1, cfg.adam_beta2), "eps": cfg.adam_epsilon}
    if cfg.optimizer == "adamw":
        trained: list[torch.nn.Parameter] = list(chain.from_iterable(group["params"] for group in groups))
        if any(parameter.dtype == torch.bfloat16 for parameter in trained):
            compiled = cfg.torch_compile != "none" and all(parameter.is_cuda for parameter in trained)
            return StochasticAdamW(groups, seed=cfg.seed, compiled=compiled, **adam)
        return torch.optim.AdamW(groups, fused=device.type == "cuda", **adam)
    if cfg.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=cfg.learning_rate)
    if cfg.optimizer == "adafactor":
        from transformers import Adafactor

        return Adafactor(groups, lr=cfg.learning_rate, scale_parameter=False, relative_step=False)
    if device.type != "cuda":
        raise ConfigError(f"algo.optimizer={cfg.optimizer} needs a CUDA GPU. Type algo.optimizer=adamw")
    import bitsandbytes

    classes = {
        "adamw_8bit": bitsandbytes.optim.AdamW8bit,
        "paged_adamw": bitsandbytes.optim.PagedAdamW,
        "paged_adamw_8bit": bitsandbytes.optim.PagedAdamW8bit,
    }
    optimizer: torch.optim.Optimizer = classes[cfg.optimizer](groups, **adam)
    return optimizer


def make_scheduler(cfg: AlgoConfig, optimizer: torch.optim.Optimizer, total: int) -> LambdaLR:
    """The schedule of `algo.lr_scheduler` over `total` steps, set to the first step. `schedule.py` has the formulas.

    Raises:
        ConfigError: an option of the schedule does not fit the length of the run.
    """
    if problems := list(schedule_problems(cfg, total)):
        raise ConfigError(problems)
    scheduler = LambdaLR(optimizer, rate_of_step(cfg, total))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch expects an optimizer step before the first scheduler step
        scheduler.step()  # torch counts from 0, the schedule from 1
    return scheduler


def restore_schedule(scheduler: LambdaLR, state: Mapping[str, Any]) -> None:
    """Continue a schedule at the step of a checkpoint. Peak and shape are those of this run's options, never the checkpoint's.

    Args:
        scheduler: from `make_scheduler`.
        state: its `state_dict` then.
    """
    scheduler.last_epoch = state["last_epoch"]
    scheduler._step_count = state["_step_count"]
    rate, then = scheduler.lr_lambdas[0], state["lr_lambdas"][0]  # the same for all groups
    if isinstance(rate, Adaptive) and then is not None:
        rate.restore(then)
    _set_rates(scheduler)


def _set_rates(scheduler: LambdaLR) -> None:
    """Set the learning rates of the next step by the schedule, as `scheduler.step` does."""
    rate = scheduler.lr_lambdas[0]
    for group, base in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, strict=True):
        group["lr"] = base * rate(scheduler.last_epoch)


def observe_loss(scheduler: LambdaLR, loss: float) -> float | None:
    """Tell a schedule that follows the held-out loss about an evaluation, and set the learning rate of the next step by it.

    Args:
        scheduler: from `make_scheduler`, set to the next step.
        loss: the held-out loss.

    Returns:
        The new learning rate if this evaluation changed it.
    """
    rate = scheduler.lr_lambdas[0]  # the same object for all groups
    if not isinstance(rate, Adaptive):
        return None
    before = rate.scale
    rate.observe(loss)
    if rate.scale == before:
        return None
    _set_rates(scheduler)
    return float(scheduler.optimizer.param_groups[0]["lr"])
