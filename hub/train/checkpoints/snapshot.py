"""One process's part of the training state at the end of a step."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch.distributed.tensor import DTensor

from hub.parallel.optimizer_state import Numbers
from hub.parallel.session import Session
from hub.parallel.sharded_tensors import is_sharded, local_region, local_tensor
from hub.train.checkpoints.cpu_copies import CpuCopies, Key
from hub.train.checkpoints.rng import random_state


@dataclass(frozen=True)
class Snapshot:
    """The state at the end of a step: this process's shards, and on rank 0 also all unsharded tensors."""

    step: int
    state: dict[str, object]
    """state.json"""

    numbers: Numbers
    """optimizer.json"""

    random: dict[str, torch.Tensor]
    in_use: Mapping[Key, torch.Tensor]
    """Tensors that training uses. The next step changes them."""

    own: Mapping[Key, torch.Tensor]
    """CPU tensors that nothing else uses: all-gathered, or copied."""

    offsets: dict[Key, tuple[int, ...]]
    """Offsets of the shards in their tensors."""

    weights: dict[str, Key]
    """Weight name in the model that a user loads -> key of the tensor. Empty on ranks other than 0."""

    is_sharded: bool
    """Whether each process writes shards. Equal on all ranks."""

    @property
    def tensors(self) -> dict[Key, torch.Tensor]:
        return {**self.in_use, **self.own}

    def copied(self, copies: CpuCopies) -> "Snapshot":
        """The same snapshot with all tensors copied to the CPU, safe from training. Complete after `copies.wait`."""
        rest = [key for key in self.in_use if key[0] == "rest"]
        return replace(self, in_use={}, own={**self.own, **copies.copy(self.in_use, at_once=rest)})

    def part(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of one file, on the CPU."""
        return {key[1]: tensor.cpu().contiguous() for key, tensor in self.tensors.items() if key[0] == name}


def take_snapshot(
    step: int, state: dict[str, object], session: Session, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> Snapshot:
    """Collect the state to store. Only tensors that must be all-gathered are copied. All ranks must call it."""
    is_main, strategy = session.group.is_main, session.strategy
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    moments, numbers = strategy.optimizer_state(model, optimizer)
    in_use: dict[Key, torch.Tensor] = {("optimizer", name): t for name, t in moments.items() if is_main or is_sharded(t)}
    own: dict[Key, torch.Tensor] = {}
    offsets = {key: local_region(tensor).offsets for key, tensor in in_use.items()}

    def collect(key: Key, tensor: torch.Tensor) -> None:
        """Add a shard or, on rank 0, a full tensor."""
        if key[0] == "trainable" and is_sharded(tensor):
            in_use[key], offsets[key] = tensor, local_region(tensor).offsets
            return
        full = strategy.whole(tensor)  # a collective: all ranks take part
        if is_main:
            gathered = isinstance(tensor, DTensor) or full.data_ptr() != tensor.data_ptr()
            (own if gathered else in_use)[key] = full.cpu() if gathered else full
            offsets[key] = (0,) * full.ndim

    known: dict[int, Key] = {}
    for name, parameter in trained.items():
        known[id(parameter)] = ("trainable", name)
        collect(known[id(parameter)], parameter)
    weights: dict[str, Key] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        # A model with adapters is saved as its adapters.
        if hasattr(model, "peft_config") and not tensor.requires_grad:
            continue
        # Tied weights are one tensor and must stay one, otherwise they would be written twice.
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
        in_use={key: local_tensor(tensor) for key, tensor in in_use.items()},
        own=own,
        offsets=offsets,
        weights=weights,
        is_sharded=any(is_sharded(tensor) for tensor in [*trained.values(), *moments.values()]),
    )
