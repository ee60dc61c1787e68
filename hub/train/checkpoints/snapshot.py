"""What one process has to store of the training state at the end of a step."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from hub.parallel.session import Session
from hub.parallel.sharded_tensors import is_share, local, place_of
from hub.train.checkpoints.host_copies import HostCopies, Key
from hub.train.checkpoints.rng import random_state


@dataclass(frozen=True)
class Snapshot:
    """The state at the end of a step: this process's shares, and on rank 0 also what no process shares out."""

    step: int
    state: dict[str, Any]
    """state.json"""

    numbers: dict[str, Any]
    """optimizer.json"""

    random: dict[str, torch.Tensor]
    in_use: Mapping[Key, torch.Tensor]
    """Tensors that training works on. The next step changes them."""

    own: Mapping[Key, torch.Tensor]
    """Tensors on the CPU that nothing else holds: put together from several processes, or copied."""

    offsets: dict[Key, tuple[int, ...]]
    """Where the shares begin."""

    weights: dict[str, Key]
    """The model's weights as a user loads them, by the names that it has for them. Empty on other ranks than 0."""

    shared_out: bool
    """Whether each process writes shares. Equal on all ranks."""

    @property
    def tensors(self) -> dict[Key, torch.Tensor]:
        return {**self.in_use, **self.own}

    def copied(self, copies: HostCopies) -> "Snapshot":
        """The same in the host's memory, where it stays as it is. Complete after `copies.wait`."""
        rest = [key for key in self.in_use if key[0] == "rest"]
        return replace(self, in_use={}, own={**self.own, **copies.copy(self.in_use, at_once=rest)})

    def part(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of one file, on the CPU."""
        return {key[1]: tensor.cpu().contiguous() for key, tensor in self.tensors.items() if key[0] == name}


def take_snapshot(
    step: int, state: dict[str, Any], session: Session, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> Snapshot:
    """Collect what is to be stored. Only what a strategy has to put together is copied. All ranks call it."""
    is_main, strategy = session.group.is_main, session.strategy
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    moments, numbers = strategy.optimizer_state(model, optimizer)
    in_use: dict[Key, torch.Tensor] = {("optimizer", name): t for name, t in moments.items() if is_main or is_share(t)}
    own: dict[Key, torch.Tensor] = {}
    offsets = {key: place_of(tensor).offsets for key, tensor in in_use.items()}

    def collect(key: Key, tensor: torch.Tensor) -> None:
        """Keep a share or, on rank 0, the whole of a tensor."""
        if key[0] == "trainable" and is_share(tensor):
            in_use[key], offsets[key] = tensor, place_of(tensor).offsets
            return
        whole = strategy.whole(tensor)  # all ranks take part
        if is_main:
            put_together = isinstance(tensor, DTensor) or whole.data_ptr() != tensor.data_ptr()
            (own if put_together else in_use)[key] = whole.cpu() if put_together else whole
            offsets[key] = (0,) * whole.ndim

    known: dict[int, Key] = {}
    for name, parameter in trained.items():
        known[id(parameter)] = ("trainable", name)
        collect(known[id(parameter)], parameter)
    weights: dict[str, Key] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        # A model with adapters is saved as its adapters.
        if hasattr(model, "peft_config") and name not in trained:
            continue
        # Tied weights are one tensor and stay one, or they would be written twice.
        if id(tensor) not in known:
            known[id(tensor)] = ("rest", name)
            collect(known[id(tensor)], tensor)
        if is_main:
            weights[name] = known[id(tensor)]
    return Snapshot(
        step=step,
        state=copy.deepcopy({"step": step, "world": session.group.world, **state}),
        numbers=copy.deepcopy(numbers),
        random=random_state(session.device),
        in_use={key: local(tensor) for key, tensor in in_use.items()},
        own=own,
        offsets=offsets,
        weights=weights,
        shared_out=any(is_share(tensor) for tensor in [*trained.values(), *moments.values()]),
    )
