"""What recomputed layers keep, in the host's memory instead of the GPU's: room for contexts that fit no other way.

A layer that recomputes its activations keeps its input alone, or the result of its attention too. Here those go to page-locked
memory on a stream of its own, while the layer or the next one runs, and come back while the layer behind it runs backward. A
copy is a copy: no number changes.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from hub.system.memory import free_host_memory_for_each
from hub.train.kernels.tiles import LEAST_TOKENS

LEAST_BYTES = 2**20
"""Less is not worth a copy."""

PIECE_BYTES = 2**26
"""Page-locked memory is taken in pieces of this size: torch rounds each up to a power of two, which could be twice the need."""


class _Group:
    """What one layer keeps on the host."""

    def __init__(self, before: "_Group | None") -> None:
        self.before = None if before is None else weakref.ref(before)
        """That of the layer before it, as long as a graph holds it: it will be asked for next."""

        self.parked: list[weakref.ref[_Parked]] = []


class _Parked:
    """A tensor on the host, and on its way back."""

    def __init__(self, tensor: torch.Tensor, pieces: list[torch.Tensor], group: _Group) -> None:
        self.shape, self.pieces, self.group = tensor.shape, pieces, group
        self.back: torch.Tensor | None = None
        self.arrived: torch.cuda.Event | None = None
        self.was_asked_for = False
        group.parked.append(weakref.ref(self))


class HostInputs:
    """Parks what recomputed layers keep: their inputs, and the result of their attention where that is kept.

    Args:
        device: where the layers run. On a CPU the copies are made all the same, for tests.
        least_bytes: smaller tensors stay.
        keeps_attention: whether the host has room for the results of attention too, where layers can keep them.
        divides_from: tokens from which on compiled layers' MLPs take them in parts.
    """

    def __init__(
        self,
        device: torch.device,
        least_bytes: int = LEAST_BYTES,
        keeps_attention: bool = True,
        divides_from: int = LEAST_TOKENS,
    ) -> None:
        self._device, self._least_bytes = device, least_bytes
        self.keeps_attention, self.divides_from = keeps_attention, divides_from
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._last: weakref.ref[_Group] | None = None
        self._known_free = 0
        self._modules: weakref.WeakKeyDictionary[torch.nn.Module, list[weakref.ref[torch.nn.Module]]] = (
            weakref.WeakKeyDictionary()
        )
        self._copying: tuple[torch.cuda.Event, list[torch.Tensor]] | None = None

    @contextmanager
    def around(self, layer: torch.nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> Iterator[None]:
        """While a layer runs its input is copied to the host; what else it keeps, while the next one runs.

        Its weights stay, and so do its other arguments, which all layers share.

        Args:
            layer: it.
            args: what it is called with, its input (R, T, H) first.
            named: the same, where it is called by name.
        """
        hidden = args[0] if args else named["hidden_states"]
        shared = {_storage(tensor) for tensor in _flat([part for part in (*args, *named.values()) if part is not hidden])}
        group = _Group(self._last() if self._last is not None else None)
        self._last = weakref.ref(group)
        first = self._park(hidden, group)
        copied = self._side.record_event() if self._side is not None else None
        later: list[torch.Tensor] = []
        # The graph holds this function as long as what it parked: it must not hold the tensors themselves.
        is_hidden = (hidden.data_ptr(), hidden.shape, hidden.dtype)
        del hidden, args, named
        stays: set[int] = set()

        def park(tensor: torch.Tensor) -> Any:
            if not self._is_worth_it(tensor):
                return tensor
            if (tensor.data_ptr(), tensor.shape, tensor.dtype) == is_hidden:
                return first
            if not stays:
                stays.update(shared, map(_storage, self._weights_of(layer)))
            if _storage(tensor) in stays:
                return tensor
            found = self._park(tensor, group)
            if isinstance(found, _Parked):
                later.append(tensor)
            return found

        try:
            with torch.autograd.graph.saved_tensors_hooks(park, self._fetch):
                yield
        finally:
            if self._side is not None and copied is not None:
                # By now the layer has run, which takes longer than the copy.
                torch.cuda.current_stream(self._device).wait_event(copied)
                self._settle()
                if later:
                    self._copying = (self._side.record_event(), later)

    def _settle(self) -> None:
        """Let the GPU go on only when what the layer before kept is copied, and free its memory there."""
        if self._copying is not None:
            torch.cuda.current_stream(self._device).wait_event(self._copying[0])
            self._copying[1].clear()
            self._copying = None

    def _is_worth_it(self, tensor: torch.Tensor) -> bool:
        is_own = tensor.device.type == self._device.type and tensor.is_floating_point()
        return bool(is_own and tensor.nbytes >= self._least_bytes)

    def _weights_of(self, layer: torch.nn.Module) -> Iterator[torch.Tensor]:
        """Walking through a layer's modules takes longer than all else here: done once."""
        modules = self._modules.get(layer)
        if modules is None:
            modules = self._modules[layer] = [weakref.ref(module) for module in layer.modules()]
        for module in modules:
            found = module()
            if found is None:
                continue
            for tensor in (*found._parameters.values(), *found._buffers.values(), *getattr(found, "hub_packed", ())):
                if isinstance(tensor, torch.Tensor):
                    yield tensor

    def _has_room(self, num_bytes: int) -> bool:
        """Whether it fits into half of what the host has for this process. Asking takes longer than a small copy."""
        if self._known_free < num_bytes:
            self._known_free = free_host_memory_for_each() // 2
        if self._known_free < num_bytes:
            return False
        self._known_free -= num_bytes
        return True

    def _park(self, tensor: torch.Tensor, group: _Group) -> Any:
        if not self._is_worth_it(tensor):
            return tensor
        if self._side is not None and not (tensor.is_contiguous() and self._has_room(tensor.nbytes)):
            return tensor
        pieces = []
        with self._beside():
            for part in _cut(tensor):
                pieces.append(torch.empty_like(part, device="cpu", pin_memory=self._side is not None))
                pieces[-1].copy_(part, non_blocking=True)
        return _Parked(tensor, pieces, group)

    def _fetch(self, held: Any) -> torch.Tensor:
        if not isinstance(held, _Parked):
            assert isinstance(held, torch.Tensor)
            return held
        self._settle()
        held.was_asked_for = True
        self._bring(held)
        self._bring_all(held.group)
        if held.group.before is not None:
            self._bring_all(held.group.before())
        found, held.back = held.back, None
        assert found is not None
        if held.arrived is not None:
            torch.cuda.current_stream(self._device).wait_event(held.arrived)
        return found

    def _bring_all(self, group: _Group | None) -> None:
        for one in group.parked if group is not None else ():
            parked = one()
            if parked is not None and not parked.was_asked_for:
                self._bring(parked)

    def _bring(self, parked: _Parked) -> None:
        """Begin to copy it back, if that has not begun."""
        if parked.back is not None:
            return
        parked.back = torch.empty(parked.shape, dtype=parked.pieces[0].dtype, device=self._device)
        with self._beside():
            for part, piece in zip(_cut(parked.back), parked.pieces, strict=True):
                part.copy_(piece, non_blocking=True)
            if self._side is not None:
                parked.arrived = self._side.record_event()

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """On the stream for copies, after all work so far: that writes what is copied, or still reads memory just taken."""
        if self._side is None:
            yield
            return
        self._side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._side):
            yield


def _cut(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A tensor in a row of pieces; views, where it is contiguous."""
    parts: tuple[torch.Tensor, ...] = tensor.detach().flatten().split(PIECE_BYTES // tensor.element_size())
    return parts


def _storage(tensor: torch.Tensor) -> int:
    found: int = tensor.untyped_storage().data_ptr()
    return found


def _flat(values: list[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, tuple):
            yield from _flat(list(value))
        elif isinstance(value, torch.Tensor):
            yield value
