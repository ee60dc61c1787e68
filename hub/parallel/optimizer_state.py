"""An optimizer's state by the names of the parameters, out of it and into it."""

from typing import Any

import torch

from hub.parallel.sharded_tensors import StoredTensors, place_of, shared_like


def flat_optimizer_state(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimizer's tensors under `parameter name/state name`, as they are, and the rest as JSON values."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, Any] = {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            place = f"{names[id(parameter)]}/{key}"
            if isinstance(value, torch.Tensor):
                tensors[place] = value.detach()
            else:
                values[place] = value
    return tensors, {"values": values, "groups": group_numbers(optimizer)}


def group_numbers(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The numbers of the parameter groups: learning rate, decay, and so on."""
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def restore_optimizer(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, stored: StoredTensors, numbers: dict[str, Any]
) -> None:
    """Give an optimizer the state that `flat_optimizer_state` found, each process what it holds of it."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    order = [names[id(parameter)] for parameter in parameters]
    state: dict[int, dict[str, Any]] = {}
    for place in [*stored.shapes, *numbers["values"]]:
        name, _, key = place.rpartition("/")
        number = order.index(name)
        state.setdefault(number, {})[key] = numbers["values"].get(place)
        if place in stored.shapes:
            parameter = parameters[number]
            alike = stored.shapes[place] == tuple(parameter.shape)
            share = stored.read(place, place_of(parameter) if alike else None).clone()  # else it may lie in the file itself
            state[number][key] = shared_like(parameter, share) if alike else share
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    restore_groups(optimizer, numbers["groups"])


def restore_groups(optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> None:
    """Give the parameter groups back their stored numbers."""
    for group, kept in zip(optimizer.param_groups, groups, strict=True):
        # JSON has no tuples, and torch checks that its betas are one.
        group.update({key: tuple(value) if isinstance(value, list) else value for key, value in kept.items()})
