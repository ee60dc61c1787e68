"""CPU offload of what checkpointed layers save, for contexts that do not fit in GPU memory otherwise.

A layer with activation checkpointing saves its input alone, or attention's result too. These are copied to page-locked
memory on a separate stream while the layer or the next one runs, and copied back while the layer after it runs backward. No
number changes.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hub.models.four_bit_tensor import FourBitTensor
from hub.system.memory import free_host_memory_for_each
from hub.train.kernels.tiles import MIN_TOKENS
from hub.train.kernels.unpack import packed_tensors

MIN_BYTES = 2**20
"""A smaller tensor is not worth a copy."""

PIECE_BYTES = 2**26
"""Page-locked memory is allocated in pieces of this size: torch rounds each up to a power of two, up to twice the need."""


class _Group:
    """The offloaded tensors of one layer."""

    def __init__(self, before: "_Group | None") -> None:
        self.before = None if before is None else weakref.ref(before)
        """Group of the layer before this one, while a graph holds it. The backward pass needs it next."""

        self.tensors: list[weakref.ref[_Offloaded]] = []


class _Offloaded:
    """A tensor in CPU memory, and the copy back once it has begun."""

    def __init__(self, tensor: torch.Tensor, order: list[int], pieces: list[torch.Tensor], group: _Group) -> None:
        self.shape, self.order, self.pieces, self.group = tensor.permute(order).shape, order, pieces, group
        self.back: torch.Tensor | None = None
        self.arrived: torch.cuda.Event | None = None
        self.was_fetched = False
        group.tensors.append(weakref.ref(self))


class ActivationOffload:
    """Offloads what checkpointed layers save: their inputs, and attention's results if those are saved.

    Args:
        device: of the layers. On a CPU the copies are made all the same, for tests.
        min_bytes: smaller tensors stay.
        saves_attention: whether CPU memory has room for attention's results too, in layers that can save them.
        tiles_from: tokens from which on the MLPs of compiled layers are tiled.
    """

    def __init__(
        self,
        device: torch.device,
        min_bytes: int = MIN_BYTES,
        saves_attention: bool = True,
        tiles_from: int = MIN_TOKENS,
    ) -> None:
        self._device, self._min_bytes = device, min_bytes
        self.saves_attention, self.tiles_from = saves_attention, tiles_from
        self._copy_stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._last: weakref.ref[_Group] | None = None
        self._known_free = 0
        self._modules: weakref.WeakKeyDictionary[torch.nn.Module, list[weakref.ref[torch.nn.Module]]] = (
            weakref.WeakKeyDictionary()
        )
        self._copying: tuple[torch.cuda.Event, list[torch.Tensor]] | None = None

    @contextmanager
    def around(self, layer: torch.nn.Module, args: tuple[object, ...], named: dict[str, object]) -> Iterator[None]:
        """Run a layer within this context: its input is offloaded meanwhile, and what else it saves while the next one runs.

        The layer's weights stay, and so do its other arguments, which all layers share.

        Args:
            layer: a decoder layer.
            args: its arguments, the input (R, T, H) first.
            named: its keyword arguments; the input is `hidden_states` if it is not in `args`.
        """
        hidden = args[0] if args else named["hidden_states"]
        assert isinstance(hidden, torch.Tensor)
        others = [part for part in (*args, *named.values()) if part is not hidden]
        shared = {_storage(tensor) for tensor in _flat(others)}
        del others
        group = _Group(self._last() if self._last is not None else None)
        self._last = weakref.ref(group)
        offloaded_input = self._offload(hidden, group)
        copied = self._copy_stream.record_event() if self._copy_stream is not None else None
        later: list[torch.Tensor] = []
        # The graph holds this function as long as what it offloaded, so it must not hold the tensors themselves.
        is_hidden = (hidden.data_ptr(), hidden.shape, hidden.dtype)
        del hidden, args, named
        stays: set[int] = set()

        def save(tensor: torch.Tensor) -> torch.Tensor | _Offloaded:
            if not self._is_worth_it(tensor):
                return tensor
            if (tensor.data_ptr(), tensor.shape, tensor.dtype) == is_hidden:
                return offloaded_input
            if not stays:
                stays.update(shared, map(_storage, self._weights_of(layer)))
            if _storage(tensor) in stays:
                return tensor
            saved = self._offload(tensor, group)
            if isinstance(saved, _Offloaded):
                later.append(tensor)
            return saved

        try:
            with torch.autograd.graph.saved_tensors_hooks(save, self._fetch):
                yield
        finally:
            if self._copy_stream is not None and copied is not None:
                # By now the layer has run, which takes longer than the copy.
                torch.cuda.current_stream(self._device).wait_event(copied)
                self._settle()
                if later:
                    self._copying = (self._copy_stream.record_event(), later)

    def _settle(self) -> None:
        """Make the GPU wait for the copies of the layer before, and free their originals."""
        if self._copying is not None:
            torch.cuda.current_stream(self._device).wait_event(self._copying[0])
            self._copying[1].clear()
            self._copying = None

    def _is_worth_it(self, tensor: torch.Tensor) -> bool:
        is_own = tensor.device.type == self._device.type and tensor.is_floating_point()
        return bool(is_own and tensor.nbytes >= self._min_bytes)

    def _weights_of(self, layer: torch.nn.Module) -> Iterator[torch.Tensor]:
        """Iterate over a layer's tensors. Walking through its modules is the slowest part, so it is done once."""
        modules = self._modules.get(layer)
        if modules is None:
            modules = self._modules[layer] = [weakref.ref(module) for module in layer.modules()]
        for module in modules:
            alive = module()
            if alive is None:
                continue
            for tensor in (*alive._parameters.values(), *alive._buffers.values(), *packed_tensors(alive)):
                if isinstance(tensor, torch.Tensor):
                    yield tensor

    def _has_room(self, num_bytes: int) -> bool:
        """Whether it fits into half of the CPU memory for this process. Asking the system takes longer than a small copy."""
        if self._known_free < num_bytes:
            self._known_free = free_host_memory_for_each() // 2
        if self._known_free < num_bytes:
            return False
        self._known_free -= num_bytes
        return True

    def _offload(self, tensor: torch.Tensor, group: _Group) -> torch.Tensor | _Offloaded:
        if not self._is_worth_it(tensor):
            return tensor
        order = _memory_order(tensor)
        if self._copy_stream is not None and not (tensor.permute(order).is_contiguous() and self._has_room(tensor.nbytes)):
            return tensor
        pieces = []
        with self._on_copy_stream():
            for part in _cut(tensor.permute(order)):
                pieces.append(torch.empty_like(part, device="cpu", pin_memory=self._copy_stream is not None))
                pieces[-1].copy_(part, non_blocking=True)
        return _Offloaded(tensor, order, pieces, group)

    def _fetch(self, held: torch.Tensor | _Offloaded) -> torch.Tensor:
        if isinstance(held, torch.Tensor):
            return held
        self._settle()
        held.was_fetched = True
        self._bring_back(held)
        self._bring_back_all(held.group)
        if held.group.before is not None:
            self._bring_back_all(held.group.before())
        tensor, held.back = held.back, None
        assert tensor is not None
        if held.arrived is not None:
            torch.cuda.current_stream(self._device).wait_event(held.arrived)
        # As it lay in memory: compiled layers count on it.
        return tensor.permute([held.order.index(dim) for dim in range(tensor.ndim)])

    def _bring_back_all(self, group: _Group | None) -> None:
        for reference in group.tensors if group is not None else ():
            tensor = reference()
            if tensor is not None and not tensor.was_fetched:
                self._bring_back(tensor)

    def _bring_back(self, tensor: _Offloaded) -> None:
        """Begin the copy back, if it has not begun."""
        if tensor.back is not None:
            return
        tensor.back = torch.empty(tensor.shape, dtype=tensor.pieces[0].dtype, device=self._device)
        with self._on_copy_stream():
            for part, piece in zip(_cut(tensor.back), tensor.pieces, strict=True):
                part.copy_(piece, non_blocking=True)
            if self._copy_stream is not None:
                tensor.arrived = self._copy_stream.record_event()

    @contextmanager
    def _on_copy_stream(self) -> Iterator[None]:
        """Copy on the separate stream after all work so far, which writes the originals or reads memory just allocated."""
        if self._copy_stream is None:
            yield
            return
        self._copy_stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._copy_stream):
            yield


def _memory_order(tensor: torch.Tensor) -> list[int]:
    """Return the dimensions by their strides, the largest first. FlexAttention's result lies in another order than its own."""
    return sorted(range(tensor.ndim), key=tensor.stride, reverse=True)


def _cut(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Split a tensor into flat pieces: views if it is contiguous."""
    parts: tuple[torch.Tensor, ...] = tensor.detach().flatten().split(PIECE_BYTES // tensor.element_size())
    return parts


def _storage(tensor: torch.Tensor) -> int:
    held = tensor.parts.words if isinstance(tensor, FourBitTensor) else tensor
    pointer: int = held.untyped_storage().data_ptr()
    return pointer


def _flat(values: list[object]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, tuple):
            yield from _flat(list(value))
        elif isinstance(value, torch.Tensor):
            yield value
