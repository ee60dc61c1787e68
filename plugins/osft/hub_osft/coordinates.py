"""OSFT's reparametrizations: project the coordinates once per optimizer step, and compute the weights from them.

Gradients are projected before clipping. The coordinates are projected again after the optimizer step, since Adam scales each
element separately, which would leak 3 % of every step into protected directions. Then each weight is computed from the base
weight and the coordinates, never by adding small numbers to bfloat16, where they would be lost.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch.nn.functional import normalize

from hub.models.rounding import rounded
from hub.parallel.reparametrization import Reparametrization
from hub.parallel.sharded_tensors import local_region, local_tensor
from hub.parallel.strategy import full
from hub.protection.pull import Pull
from hub.train.attempts import twice
from hub_osft.embeddings import FreeRows
from hub_osft.layers import OsftFactored
from hub_osft.subspace import change_of, oriented, project_, project_exactly, pull_to_base_

MAX_STACKED = 2**26
"""Maximum number of coordinates projected in one call. Equal shapes are stacked, which saves small models many calls."""


@dataclass
class Part:
    """One weight, and the coordinates of its change."""

    module: torch.nn.Module
    """Holds the weight. Looked up each time, since sharding replaces the parameter."""

    parameter: str
    coordinates: torch.nn.Parameter
    free: torch.Tensor | None
    """Q D, float32: Q has orthonormal columns, D is the step of each. Corner changes have no D."""

    protected: torch.Tensor | None
    """U_h, in the compute dtype; moved to a stack of equal shapes. None: no left side is protected."""

    left: bool
    corner: bool
    protects_left: bool
    """Whether a left side is protected."""

    penalty: torch.Tensor | None = None
    """(f,): penalty strength of each column of Z, times the learning rate. None: no penalty."""

    wide: Pull | None = None
    """The penalty on a change without directions. None: there is none, or `penalty` has it."""

    base: torch.Tensor = field(init=False)
    """The base weight, sharded as the weight is. Set once the model is placed."""

    @property
    def weight(self) -> torch.Tensor:
        weight: torch.Tensor = getattr(self.module, self.parameter)
        return weight

    @property
    def q(self) -> torch.Tensor | None:
        """Q D. None if the coordinates are the full change."""
        return None if self.corner else self.free


class FastReparametrization(Reparametrization):
    """Coordinates Z with Delta = Z (Q D)^T, or the full Delta, for each weight."""

    def __init__(self, parts: Sequence[Part], embeddings: FreeRows | None = None, offload: bool = False) -> None:
        """Create the reparametrization.

        Args:
            parts: the weights with coordinates.
            embeddings: the rows of the embeddings that may change, if only some may.
            offload: whether the base weights are held in CPU memory.
        """
        self.parts, self.embeddings, self._offload = list(parts), embeddings, offload
        self._stacks = _stacks(self.parts)

    @torch.no_grad()
    def placed(self) -> None:
        for part in self.parts:
            base = part.weight.detach()
            part.base = _in_cpu_memory(base) if self._offload else base.clone()
        if self.embeddings is not None:
            self.embeddings.placed()

    def memory(self) -> list[tuple[str, int, str]]:
        weights = sum(part.weight.nbytes for part in self.parts)
        protected = sum(stack.protected.nbytes for stack in self._stacks)
        # Without a corner the layers hold the free directions, as buffers.
        free = sum(part.free.nbytes for part in self.parts if part.corner and part.free is not None)
        return [
            ("base weights", 0 if self._offload else weights, "OSFT: each trained weight as it was"),
            ("protected directions", protected, "OSFT: gradients are projected by them"),
            ("free directions", free, "OSFT: changes lie within them"),
            ("directions of wide inputs", self._bytes_of_wide(), "OSFT: changes are pulled back along them"),
        ]

    def _bytes_of_wide(self) -> int:
        pulls = [part.wide for part in self.parts if part.wide is not None]
        tops = {id(pull.top): pull.top.nbytes for pull in pulls}
        return sum(tops.values()) + sum(pull.energy.nbytes + pull.rest.nbytes for pull in pulls)

    @torch.no_grad()
    def project_gradients(self) -> None:
        for stack in self._stacks:
            stack.project_([gradient_of(part.coordinates) for part in stack.parts])
        if self.embeddings is not None:
            self.embeddings.project_gradient_()

    @torch.no_grad()
    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        self._decay(optimizer)
        rates = rates_of(optimizer)
        for part in self.parts:
            if part.penalty is not None:
                pull_to_base_(part.coordinates, part.penalty, rates[id(part.coordinates)].learning)
            elif part.wide is not None:
                part.wide.pull_(part.coordinates, rates[id(part.coordinates)].learning)
        for stack in self._stacks:
            stack.project_([part.coordinates for part in stack.parts])
        if self.embeddings is not None:
            self.embeddings.follow_({key: rate.learning for key, rate in rates.items()})
        self.loaded()

    @torch.no_grad()
    def loaded(self) -> None:
        for part in self.parts:
            form_(part)

    @contextmanager
    def exact(self) -> Iterator[None]:
        with torch.no_grad():
            for number, part in enumerate(self.parts):
                twice(part.module, partial(_form_exactly_, part, f"osft {number}"))
        yield
        self.loaded()

    def _decay(self, optimizer: torch.optim.Optimizer) -> None:
        """Apply weight decay to the free part of the weight only.

        The optimizer has decayed the coordinates by rate * decay; here the free part of the base weight follows.
        """
        rates = rates_of(optimizer)
        for part in self.parts:
            if rate := rates[id(part.coordinates)].decay:
                first = oriented(full(part.base), part.left).to(part.coordinates)
                if part.free is not None and part.corner:
                    first = (first @ part.free) @ part.free.mT
                elif part.free is not None:
                    first = (first @ part.free) / part.free.square().sum(-2)[..., None, :]
                part.coordinates.sub_(first, alpha=rate)


class FactoredReparametrization(Reparametrization):
    """The paper's factors: gradients and factors are projected, the weight is computed in each forward pass."""

    def __init__(self, layers: Sequence[tuple[OsftFactored, torch.Tensor, torch.Tensor]]) -> None:
        """Create the reparametrization.

        Args:
            layers: each with U_h (M, k) and Q (p, f), float32.
        """
        self.layers = list(layers)

    def memory(self) -> list[tuple[str, int, str]]:
        num_bytes = sum(protected.nbytes + free.nbytes for _, protected, free in self.layers)
        return [("directions", num_bytes, "OSFT: gradients and factors are projected by them")]

    @torch.no_grad()
    def project_gradients(self) -> None:
        for layer, protected, free in self.layers:
            self._project(gradient_of(layer.osft_left), gradient_of(layer.osft_right), protected, free)

    @torch.no_grad()
    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        for layer, protected, free in self.layers:
            self._project(layer.osft_left, layer.osft_right, protected, free)

    @contextmanager
    def exact(self) -> Iterator[None]:
        with torch.no_grad():
            for number, (layer, _, _) in enumerate(self.layers):
                twice(layer, partial(_keep_exactly_, layer, f"osft {number}"))
        yield

    @staticmethod
    def _project(left: torch.Tensor, right: torch.Tensor, protected: torch.Tensor, free: torch.Tensor) -> None:
        left.sub_(protected @ (protected.mT @ left))
        right.copy_((right @ free) @ free.mT)


@dataclass
class _Stack:
    """Parts of equal shapes, with their protected directions in one tensor."""

    parts: list[Part]
    protected: torch.Tensor

    def project_(self, tensors: Sequence[torch.Tensor]) -> None:
        corner = self.parts[0].free if self.parts[0].corner else None
        if len(tensors) == 1:
            project_(tensors[0], self.protected, corner)
            return
        stacked = torch.stack(list(tensors))
        project_(stacked, self.protected)
        torch._foreach_copy_(list(tensors), list(stacked.unbind()))


def _stacks(parts: list[Part]) -> list[_Stack]:
    stacks: list[_Stack] = []
    waiting: dict[tuple[torch.Size, torch.Size, torch.dtype], list[Part]] = {}

    def stack(group: list[Part]) -> None:
        protected = [part.protected for part in group if part.protected is not None]
        for part in group:
            part.protected = None
        stacks.append(_Stack(group, protected[0] if len(protected) == 1 else torch.stack(protected)))

    for part in parts:
        if part.protected is None:
            continue
        key = (part.coordinates.shape, part.protected.shape, part.protected.dtype)
        group = waiting.setdefault(key, [])
        group.append(part)
        if part.corner or part.coordinates.numel() * (len(group) + 1) > MAX_STACKED:
            stack(waiting.pop(key))
    for group in waiting.values():
        stack(group)
    return stacks


class _Rates(NamedTuple):
    """Rates of one parameter in an optimizer step."""

    learning: float
    """Learning rate."""

    decay: float
    """Learning rate times weight decay."""


def rates_of(optimizer: torch.optim.Optimizer) -> dict[int, _Rates]:
    """The rates of an optimizer's parameters, by their ids."""
    rates: dict[int, _Rates] = {}
    for group in optimizer.param_groups:
        of_group = _Rates(group["lr"], group["lr"] * group.get("weight_decay", 0.0))
        rates |= {id(parameter): of_group for parameter in group["params"]}
    return rates


def gradient_of(parameter: torch.nn.Parameter) -> torch.Tensor:
    """A trained parameter's gradient. The strategy has set it, to zeros if no pass reached the parameter."""
    assert parameter.grad is not None
    return parameter.grad


def _in_cpu_memory(weight: torch.Tensor) -> torch.Tensor:
    """A copy from which a GPU can read while the CPU goes on."""
    copy = weight.to("cpu", copy=True)
    return copy.pin_memory() if weight.is_cuda else copy


def form_(part: Part) -> None:
    """Compute a weight from its coordinates, in the weight's dtype: W_0 + Delta."""
    weight, base = local_tensor(part.weight), local_tensor(part.base)
    rows = _rows(part.weight)
    device = part.coordinates.device
    base = base.to(device, non_blocking=True)
    if part.q is None:
        weight.copy_(base + oriented(part.coordinates, part.left)[rows])
        return
    coordinates, free = part.coordinates.to(base.dtype), part.q.to(base.dtype)
    first, second = (free, coordinates) if part.left else (coordinates, free)
    batched = weight.ndim == 3
    multiply: Callable[..., torch.Tensor] = torch.baddbmm if batched else torch.addmm
    first, second = first[rows], second[rows] if batched else second
    if weight.device == device:
        multiply(base, first, second.mT, out=weight)
    else:
        weight.copy_(multiply(base, first, second.mT))


def _form_exactly_(part: Part, name: str) -> None:
    """Compute a weight as `form_` does, with the change projected and added in float64 and rounded once.

    Args:
        part: receives the weight.
        name: seeds the rounding.
    """
    base = full(part.base).to(part.coordinates.device)
    matrices, coordinates = oriented(base, part.left), part.coordinates.detach()
    if part.free is not None and part.protects_left:
        directions = part.free if part.corner else normalize(part.free.double(), dim=-2)
        if base.ndim == 3:
            each = zip(coordinates, matrices, directions, strict=True)
            coordinates = torch.stack([project_exactly(z, a, q, part.corner) for z, a, q in each])
        else:
            coordinates = project_exactly(coordinates, matrices, directions, part.corner)
    free = None if part.q is None else part.q.double()
    exact = base.double() + change_of(coordinates.double(), free, part.left)
    local_tensor(part.weight).copy_(_to_be_saved(exact, part.weight.dtype, name)[_rows(part.weight)])


def _keep_exactly_(layer: OsftFactored, name: str) -> None:
    layer.weight.copy_(_to_be_saved(layer.full_weight(torch.float64), layer.weight.dtype, name))


def _to_be_saved(exact: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    """A whole weight for a file: in a type of fewer bits than float32 by chance, so that small changes are in it on average."""
    return exact if dtype == torch.float32 else rounded(exact.float().cpu(), dtype, name)


def _rows(tensor: torch.Tensor) -> slice:
    """The rows of a tensor that this rank holds."""
    region = local_region(tensor)
    return slice(region.offsets[0], region.end[0])
