"""What recomputed layers keep, in the host's memory instead of the GPU's: room for contexts that fit no other way.

A layer that recomputes its activations keeps its input alone. Here that one goes to page-locked memory while the layer runs, on
a stream of its own, and comes back while the layer behind it runs backward. A copy is a copy: no number changes.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from hub.train.checkpoints.host_copies import free_host_memory

LEAST_BYTES = 2**20
"""Less is not worth a copy."""

PIECE_BYTES = 2**26
"""Page-locked memory is taken in pieces of this size: torch rounds each up to a power of two, which could be twice the need."""


class _Parked:
    """A tensor on the host, and on its way back."""

    def __init__(self, shape: torch.Size, pieces: list[torch.Tensor], before: "weakref.ref[_Parked] | None") -> None:
        self.shape, self.pieces = shape, pieces
        self.before = before
        """What was parked before it, as long as a graph holds that: it will be asked for next."""

        self.back: torch.Tensor | None = None
        self.arrived: torch.cuda.Event | None = None


class HostInputs:
    """Parks the inputs of recomputed layers.

    Args:
        device: where the layers run. On a CPU the copies are made all the same, for tests.
        least_bytes: smaller tensors stay.
    """

    def __init__(self, device: torch.device, least_bytes: int = LEAST_BYTES) -> None:
        self._device, self._least_bytes = device, least_bytes
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._last: weakref.ref[_Parked] | None = None

    def hooks(self) -> Any:
        """A context in which what a checkpointed call saves of its arguments is parked."""
        return torch.autograd.graph.saved_tensors_hooks(self._park, self._fetch)

    def parked(self) -> None:
        """Let the GPU go on only when what was parked is copied. By then the layer has run: longer than a copy takes."""
        if self._side is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._side)

    def _park(self, tensor: torch.Tensor) -> Any:
        num_bytes = tensor.numel() * tensor.element_size()
        if tensor.device.type != self._device.type or not tensor.is_floating_point() or num_bytes < self._least_bytes:
            return tensor
        if self._side is not None and (free_host_memory() < 2 * num_bytes or not tensor.is_contiguous()):
            return tensor
        pieces = []
        with self._beside():
            for part in _cut(tensor):
                pieces.append(torch.empty_like(part, device="cpu", pin_memory=self._side is not None))
                pieces[-1].copy_(part, non_blocking=True)
        parked = _Parked(tensor.shape, pieces, self._last)
        self._last = weakref.ref(parked)
        return parked

    def _fetch(self, held: Any) -> torch.Tensor:
        if not isinstance(held, _Parked):
            assert isinstance(held, torch.Tensor)
            return held
        self._bring(held)
        found, held.back = held.back, None
        assert found is not None
        if held.arrived is not None:
            torch.cuda.current_stream(self._device).wait_event(held.arrived)
        before = held.before() if held.before is not None else None
        if before is not None:
            self._bring(before)
        return found

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
