"""An optimizer's state by parameter name: export and restore."""

from itertools import chain
from typing import TypedDict

import torch

from hub.parallel.sharded_tensors import StoredTensors, local_region, sharded_like


class Numbers(TypedDict):
    """What an optimizer's state has besides tensors, as in optimizer.json."""

    values: dict[str, object]
    """State under `parameter name/state name`."""

    groups: list[dict[str, object]]
    """Hyperparameters of the parameter groups."""


def flat_optimizer_state(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], Numbers]:
    """An optimizer's tensors under `parameter name/state name`, sharded as they are, and the rest as JSON values."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, object] = {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            path = f"{names[id(parameter)]}/{key}"
            if isinstance(value, torch.Tensor):
                tensors[path] = value.detach()
            else:
                values[path] = value
    return tensors, {"values": values, "groups": group_numbers(optimizer)}


def trained_parameters(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    """The parameters of all groups, in the optimizer's order."""
    return list(chain.from_iterable(group["params"] for group in optimizer.param_groups))


def group_numbers(optimizer: torch.optim.Optimizer) -> list[dict[str, object]]:
    """The hyperparameters of the parameter groups: learning rate, decay, and so on."""
    numbers = [dict(group) for group in optimizer.param_groups]
    for group in numbers:
        del group["params"]
    return numbers


def restore_optimizer(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, stored: StoredTensors, numbers: Numbers
) -> None:
    """Load the state that `flat_optimizer_state` exported. Each process reads only its own shards."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = trained_parameters(optimizer)
    order = [names[id(parameter)] for parameter in parameters]
    state: dict[int, dict[str, object]] = {}
    for path in [*stored.shapes, *numbers["values"]]:
        name, _, key = path.rpartition("/")
        number = order.index(name)
        state.setdefault(number, {})[key] = numbers["values"].get(path)
        if path in stored.shapes:
            parameter = parameters[number]
            alike = stored.shapes[path] == tuple(parameter.shape)
            # A copy: what is read may be memory-mapped from the file.
            shard = stored.read(path, local_region(parameter) if alike else None).clone()
            state[number][key] = sharded_like(parameter, shard) if alike else shard
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    restore_groups(optimizer, numbers["groups"])


def restore_groups(optimizer: torch.optim.Optimizer, groups: list[dict[str, object]]) -> None:
    """Restore the stored hyperparameters of the parameter groups."""
    for group, stored in zip(optimizer.param_groups, groups, strict=True):
        # JSON has no tuples, and torch requires betas to be one.
        group.update({key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()})
