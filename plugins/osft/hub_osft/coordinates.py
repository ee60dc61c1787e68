"""What is done with OSFT's coordinates once per optimizer step, and when weights are stored.

Gradients are projected before clipping. After the optimizer the coordinates are projected again, since Adam scales each
number by itself and would lead 3 % of every step back to where nothing may move. Then each weight is formed from the
first weight and the coordinates: never by adding small numbers to bfloat16, where they would be lost.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import normalize

from hub.parallel.reparametrization import Coordinates
from hub.parallel.sharded_tensors import local, place_of
from hub.parallel.strategy import full
from hub_osft.embeddings import FreeRows
from hub_osft.layers import OsftFactored
from hub_osft.subspace import change_of, draw_back_, oriented, project_, project_exactly

MOST_STACKED = 2**26
"""Numbers of coordinates that are projected in one call: equal shapes go together, which spares small models many calls."""


@dataclass
class Part:
    """One weight and the coordinates of its change."""

    module: Any
    """Holds the weight. Asked each time, since sharing out replaces the parameter."""

    parameter: str
    coordinates: torch.nn.Parameter
    free: torch.Tensor | None
    """Q D, float32: Q has orthonormal columns, D says how far the optimizer moves each. Corner changes have no D."""

    kept: torch.Tensor | None
    """U_h, in the compute type; given over to a stack of equal ones. None: no left side is kept."""

    left: bool
    corner: bool
    keeps_left: bool
    """Whether a left side is kept."""

    pull: torch.Tensor | None = None
    """(f,): how strongly each column of Z is drawn back to zero, times the learning rate. None: not at all."""

    base: Any = None
    """The first weight, shared out as the weight is."""

    @property
    def weight(self) -> torch.Tensor:
        found: torch.Tensor = getattr(self.module, self.parameter)
        return found

    @property
    def q(self) -> torch.Tensor | None:
        """Q D when the coordinates are those of it, None when they are the whole change."""
        return None if self.corner else self.free


class FastCoordinates(Coordinates):
    """Coordinates Z with Delta = Z (Q D)^T, or the whole Delta, for each weight."""

    def __init__(self, parts: Sequence[Part], embeddings: FreeRows | None = None) -> None:
        """Take over what trains.

        Args:
            parts: the weights with coordinates.
            embeddings: the rows of the embeddings that may change, where some but not all may.
        """
        self.parts, self.embeddings = list(parts), embeddings
        self._stacks = _stacks(self.parts)

    @torch.no_grad()
    def placed(self) -> None:
        for part in self.parts:
            part.base = part.weight.detach().clone()
        if self.embeddings is not None:
            self.embeddings.placed()

    @torch.no_grad()
    def project_gradients(self) -> None:
        for stack in self._stacks:
            stack.project_([part.coordinates.grad for part in stack.parts])
        if self.embeddings is not None:
            self.embeddings.project_gradient_()

    @torch.no_grad()
    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        self._decay(optimizer)
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        for part in self.parts:
            if part.pull is not None:
                draw_back_(part.coordinates, part.pull, rates[id(part.coordinates)])
        for stack in self._stacks:
            stack.project_([part.coordinates for part in stack.parts])
        if self.embeddings is not None:
            self.embeddings.follow_(rates)
        self.loaded()

    @torch.no_grad()
    def loaded(self) -> None:
        for part in self.parts:
            form_(part)

    @contextmanager
    def exact(self) -> Iterator[None]:
        with torch.no_grad():
            for part in self.parts:
                _form_exactly_(part)
        yield
        self.loaded()

    def _decay(self, optimizer: torch.optim.Optimizer) -> None:
        """Weight decay draws the free part of the weight to zero, and leaves the rest alone.

        The optimizer has shrunk the coordinates by rate * decay; here the free part of the first weight follows.
        """
        rates = {
            id(p): group["lr"] * group.get("weight_decay", 0.0) for group in optimizer.param_groups for p in group["params"]
        }
        for part in self.parts:
            if rate := rates[id(part.coordinates)]:
                first = oriented(full(part.base), part.left).to(part.coordinates)
                if part.free is not None and part.corner:
                    first = (first @ part.free) @ part.free.mT
                elif part.free is not None:
                    first = (first @ part.free) / part.free.square().sum(-2)[..., None, :]
                part.coordinates.sub_(first, alpha=rate)


class FactoredCoordinates(Coordinates):
    """The paper's factors: gradients and factors are projected, the weight is put together in each forward pass."""

    def __init__(self, layers: Sequence[tuple[OsftFactored, torch.Tensor, torch.Tensor]]) -> None:
        """Args:
        layers: each with U_h (M, k) and Q (p, f), float32.
        """
        self.layers = list(layers)

    @torch.no_grad()
    def project_gradients(self) -> None:
        for layer, kept, free in self.layers:
            left, right = layer.osft_left.grad, layer.osft_right.grad
            assert left is not None
            assert right is not None
            self._project(left, right, kept, free)

    @torch.no_grad()
    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        for layer, kept, free in self.layers:
            self._project(layer.osft_left, layer.osft_right, kept, free)

    @contextmanager
    def exact(self) -> Iterator[None]:
        with torch.no_grad():
            for layer, _, _ in self.layers:
                layer.weight.copy_(layer.whole(torch.float64))
        yield

    @staticmethod
    def _project(left: torch.Tensor, right: torch.Tensor, kept: torch.Tensor, free: torch.Tensor) -> None:
        left.sub_(kept @ (kept.mT @ left))
        right.copy_((right @ free) @ free.mT)


@dataclass
class _Stack:
    """Parts of equal shapes, whose kept directions are one tensor."""

    parts: list[Part]
    kept: torch.Tensor

    def project_(self, tensors: list[Any]) -> None:
        corner = self.parts[0].free if self.parts[0].corner else None
        if len(tensors) == 1:
            project_(tensors[0], self.kept, corner)
            return
        together = torch.stack(tensors)
        project_(together, self.kept)
        torch._foreach_copy_(tensors, list(together.unbind()))


def _stacks(parts: list[Part]) -> list[_Stack]:
    stacks: list[_Stack] = []
    waiting: dict[Any, list[Part]] = {}

    def stack(together: list[Part]) -> None:
        kept = [part.kept for part in together if part.kept is not None]
        for part in together:
            part.kept = None
        stacks.append(_Stack(together, kept[0] if len(kept) == 1 else torch.stack(kept)))

    for part in parts:
        if part.kept is None:
            continue
        key = (part.coordinates.shape, part.kept.shape, part.kept.dtype)
        group = waiting.setdefault(key, [])
        group.append(part)
        if part.corner or part.coordinates.numel() * (len(group) + 1) > MOST_STACKED:
            stack(waiting.pop(key))
    for group in waiting.values():
        stack(group)
    return stacks


def form_(part: Part) -> None:
    """Bring a weight to its coordinates, in the weight's type: W_0 + Delta."""
    weight, base = local(part.weight), local(part.base)
    rows = _rows(part.weight)
    device = part.coordinates.device
    if part.q is None:
        weight.copy_(base.to(device) + oriented(part.coordinates, part.left)[rows])
        return
    coordinates, free = part.coordinates.to(base.dtype), part.q.to(base.dtype)
    first, second = (free, coordinates) if part.left else (coordinates, free)
    if weight.ndim == 3:
        first, second, multiply = first[rows], second[rows], torch.baddbmm
    else:
        first, multiply = first[rows], torch.addmm
    if weight.device == device:
        multiply(base, first, second.mT, out=weight)
    else:
        weight.copy_(multiply(base.to(device), first, second.mT))


def _form_exactly_(part: Part) -> None:
    """The same with the change projected and added in float64: one rounding, that of the weight's type."""
    base = full(part.base).to(part.coordinates.device)
    matrices, coordinates = oriented(base, part.left), part.coordinates
    if part.free is not None and part.keeps_left:
        directions = part.free if part.corner else normalize(part.free.double(), dim=-2)
        if base.ndim == 3:
            each = zip(coordinates, matrices, directions, strict=True)
            coordinates = torch.stack([project_exactly(z, a, q, part.corner) for z, a, q in each])
        else:
            coordinates = project_exactly(coordinates, matrices, directions, part.corner)
    free = None if part.q is None else part.q.double()
    whole = base.double() + change_of(coordinates.double(), free, part.left)
    local(part.weight).copy_(whole[_rows(part.weight)])


def _rows(tensor: torch.Tensor) -> slice:
    """Which rows of a tensor this rank has."""
    place = place_of(tensor)
    return slice(place.offsets[0], place.end[0])
