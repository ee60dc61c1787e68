"""Counts the tensors that live while torch runs: on fake tensors what a pass would take, on real ones what it takes."""

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hub.plan.sizes import ROUNDING, Events, Size


class Live(TorchDispatchMode):  # type: ignore[misc]
    """Records each storage that an operation creates, and when it is freed.

    Torch's own MemTracker can't be used: it registers hooks on frozen weights, which raises.

    Args:
        scratch: bytes that an operator takes for itself while it runs, by its name and arguments: those that its kernel on a
            GPU allocates and no graph shows.
        rounds: whether each tensor counts as torch's allocator rounds it. Sizes as functions of the tokens need exact ones.
    """

    def __init__(self, scratch: Callable[[str, Sequence[Any]], int] | None = None, rounds: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rounds = rounds
        self.events = Events()
        self.num_bytes = 0
        self.most_bytes = 0
        self._sizes: dict[int, int] = {}
        self._scratch = scratch

    def known(self, tensors: Iterable[torch.Tensor]) -> None:
        """Tell what is there already: it does not count."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._sizes:
                self._sizes[key] = 0
                weakref.finalize(storage, self._sizes.pop, key, None)

    def take_events(self) -> Events:
        """What was recorded since the last call."""
        events, self.events = self.events, Events()
        return events

    def add(self, tensor: torch.Tensor) -> None:
        """Record a tensor, if its storage is new."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        num_bytes = -(-int(storage.nbytes()) // ROUNDING) * ROUNDING if self._rounds else int(storage.nbytes())
        self._sizes[key] = num_bytes
        self._change(num_bytes)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self._change(-self._sizes.pop(key))

    def _change(self, num_bytes: int) -> None:
        size = Size.of(abs(num_bytes))
        self.events.changes.append(size if num_bytes > 0 else -size)
        self.num_bytes += num_bytes
        self.most_bytes = max(self.most_bytes, self.num_bytes)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._scratch is not None and (num_bytes := self._scratch(func.name(), args)):
            self._change(num_bytes)
            self._change(-num_bytes)
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self.add(value)
        return result
