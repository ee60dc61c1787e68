"""The load-balancing loss of a run: decided, tried on the model, and said in plan.json."""

from dataclasses import replace

import torch

from hub.errors import ConfigError
from hub.models.patches import patches_of
from hub.models.structure import base_of, text_config
from hub.parallel.group import max_over_ranks
from hub.train.kernels.balancing import Balance, BalancedRouters, disagrees
from hub.train.recipe import Recipe
from hub.train.setup.balancing import load_balancing
from hub.train.setup.setup import Setup
from hub.train.step import Criterion

LEAVE_OUT = "Type algo.router_aux_loss_coef=0 to train without it"


def balanced(setup: Setup, recipe: Recipe) -> Criterion:
    """Return the criterion of a recipe, with the load-balancing loss if the run has one. All ranks must call it.

    Args:
        setup: config, run folder, processes.
        recipe: its model is placed, and not compiled yet.

    Raises:
        ConfigError: it was asked for, and this model or this way of training has none.
    """
    model, run = recipe.model, setup.run
    asked = setup.cfg.algo.router_aux_loss_coef
    decided = load_balancing(model, asked)
    if decided is None:
        return recipe.criterion
    coefficient, because, problem = decided
    criterion = recipe.criterion
    if coefficient and not problem:
        if recipe.kernels is not None:
            problem = f"{recipe.kernels.library} has its own layers"
        elif setup.session.strategy.has_engine:
            problem = f"launch.strategy={setup.cfg.launch.strategy} scales the loss itself"
        else:
            criterion, problem = _with_balance(setup, recipe, coefficient)
    if problem and asked:
        raise ConfigError(f"algo.router_aux_loss_coef={asked:g}: {problem}. {LEAVE_OUT}")
    if problem:
        run.say(f"without the experts' load-balancing loss, which config.json asks for: {problem}")
        run.write_plan(load_balancing_loss="left out", load_balancing_loss_because=problem)
        return recipe.criterion
    run.write_plan(load_balancing_loss=coefficient or "none", load_balancing_loss_because=because)
    if coefficient:
        run.say(
            f"with the experts' load-balancing loss of each step, times {coefficient:g}: {because}. A pass without gradient "
            "counts the choices of each step's tokens first"
        )
    return criterion


def _with_balance(setup: Setup, recipe: Recipe, coefficient: float) -> tuple[Criterion, str]:
    """The criterion with the load-balancing loss, or why there is none. Routers are changed only if there is one."""
    model, device = recipe.model, setup.session.device
    base = base_of(model)
    sizes = [getattr(base, name, None) for name in ("num_experts", "num_experts_per_tok")]
    if not all(isinstance(size, int) for size in sizes):
        return recipe.criterion, "the numbers of experts are not known"
    balance = Balance(coefficient, sizes[0], sizes[1], device)  # type: ignore[arg-type]  # checked above
    patch = patches_of(model).apply(BalancedRouters(model, balance))
    problem = ""
    was_training = model.training
    model.eval()
    try:
        with setup.session.autocast():
            problem = disagrees(model, balance, text_config(model).vocab_size, device)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        problem = f"its routers can't be followed ({type(error).__name__})"
    finally:
        model.train(was_training)
    if max_over_ranks(float(bool(problem))) > 0:
        patches_of(model).undo(patch)
        return recipe.criterion, problem or "another process can't follow its routers"
    return replace(recipe.criterion, balance=balance), ""
