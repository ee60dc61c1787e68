"""Rows of a cache of keys and values: taken out, added, and written in place.

transformers copies the whole cache in each step (`DynamicLayer.update`: `torch.cat`). `RoomyLayer` has room for more tokens
behind it and writes into that. All rows end at the same column. Those with fewer tokens have padding on the left, which the
attention mask leaves out; columns that are padding in all rows are cut off.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import cache_utils
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

SPARE = 0.25
"""Room for new tokens, as a fraction of the tokens that are there."""

LEAST_SPARE = 64
"""Tokens that there is room for at least."""

_LINEAR = [
    kind
    for name in (
        "LinearAttentionLayer",
        "LinearAttentionAndFullAttentionLayer",
        "LinearAttentionAndSlidingWindowAttentionLayer",
    )
    if (kind := getattr(cache_utils, name, None)) is not None
]
_STATES = ("conv_states", "recurrent_states")


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer, with room for more tokens and more rows."""

    _layer_type = None

    def __init__(self, layer: Any) -> None:
        """Args:
        layer: takes its place.
        """
        set_up: Any = super().__init__
        set_up()
        self.dtype, self.device, self.is_initialized = layer.dtype, layer.device, True
        self._room: list[torch.Tensor] = [layer.keys, layer.values]
        self._rows, self._begin, self._end = int(layer.keys.shape[0]), 0, int(layer.keys.shape[-2])
        self._show()

    @property
    def width(self) -> int:
        """Columns, padding included."""
        return self._end - self._begin

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new keys and values behind the others, and return all. The arguments are those of transformers."""
        new = key_states.shape[-2]
        if self._end + new > self._room[0].shape[2]:
            self._refit(self._room[0].shape[0], 0, max(LEAST_SPARE, new, int(self.width * SPARE)))
        for room, states in zip(self._room, (key_states, value_states), strict=True):
            room[: self._rows, :, self._end : self._end + new] = states
        self._end += new
        return self._show()

    def keep(self, moves: tuple[torch.Tensor, torch.Tensor], rows: int, width: int) -> None:
        """See `keep`: `moves` has places, and the rows that move there."""
        places, sources = moves
        if len(places):
            for room in self._room:
                room[places, :, self._begin : self._end] = room[sources, :, self._begin : self._end]
        self._rows, self._begin = rows, self._end - width
        self._show()

    def join(self, other: "RoomyLayer", width: int) -> None:
        """See `join`."""
        rows = self._rows + other._rows
        left = max(0, width - self._end)
        if left or rows > self._room[0].shape[0]:
            self._refit(max(rows, self._room[0].shape[0]), width - self.width, max(LEAST_SPARE, int(width * SPARE)))
        for room, more in zip(self._room, other._show(), strict=True):
            room[self._rows : rows, :, self._end - other.width : self._end] = more
        self._rows, self._begin = rows, self._end - width
        self._show()

    def _refit(self, rows: int, left: int, right: int) -> None:
        """Take room for more. Zeros, since what attention leaves out is multiplied by 0: it must be finite."""
        width = self.width
        self.keys = self.values = None
        for number, old in enumerate(self._room):
            new = old.new_zeros((rows, old.shape[1], left + width + right, old.shape[3]))
            new[: self._rows, :, left : left + width] = old[: self._rows, :, self._begin : self._end]
            self._room[number] = new
            del old
        self._begin, self._end = left, left + width

    def _show(self) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = (room[: self._rows, :, self._begin : self._end] for room in self._room)
        self.keys, self.values = keys, values
        return keys, values


def take_over(cache: Any) -> bool:
    """Whether rows of a cache can be moved. Its layers of full attention get room for more tokens."""
    if not isinstance(cache, Cache) or not isinstance(getattr(cache, "layers", None), list):
        return False
    if getattr(cache, "offloading", False) or not all(map(_is_known, cache.layers)):
        return False
    for number, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and layer.is_initialized:
            cache.layers[number] = RoomyLayer(layer)
    return True


def _is_known(layer: Any) -> bool:
    if type(layer) in _LINEAR:
        return all(isinstance(getattr(layer, name, None), dict) for name in _STATES)
    return type(layer) in (DynamicLayer, DynamicSlidingWindowLayer, RoomyLayer) or type(layer).__name__ == "DummyLayer"


def keep(cache: Cache, order: Sequence[int], width: int, device: torch.device) -> None:
    """Keep some rows of a cache.

    Args:
        cache: after `take_over`.
        order: the row that comes to each place. One that does not stay at its place is not among the first `len(order)`.
        width: columns that are kept, the last ones.
        device: of the cache.
    """
    index = torch.tensor(order, device=device, dtype=torch.long)
    moved = [(place, row) for place, row in enumerate(order) if place != row]
    moves = tuple(torch.tensor([pair[side] for pair in moved], device=device, dtype=torch.long) for side in (0, 1))
    layer: Any
    for layer in cache.layers:
        if isinstance(layer, RoomyLayer):
            layer.keep((moves[0], moves[1]), len(order), width)
            continue
        for states in _states(layer):
            for number, state in states.items():
                if state is not None:
                    states[number] = state.index_select(0, index)
        if _has_keys(layer):
            layer.keys, layer.values = layer.keys.index_select(0, index), layer.values.index_select(0, index)
            _set_width(layer, width)


def join(cache: Cache, other: Cache, width: int) -> None:
    """Add the rows of another cache of the same model behind those of a cache.

    Args:
        cache: after `take_over`.
        other: also after it. It is not used afterwards.
        width: columns of both together.
    """
    layer: Any
    more: Any
    for layer, more in zip(cache.layers, other.layers, strict=True):
        if isinstance(layer, RoomyLayer):
            layer.join(more, width)
            continue
        for states, others in zip(_states(layer), _states(more), strict=True):
            for number, state in states.items():
                if state is not None:
                    states[number] = torch.cat([state, others[number]])  # both have seen a prompt
        if _has_keys(layer):
            _set_width(layer, width)
            _set_width(more, width)
            layer.keys, layer.values = torch.cat([layer.keys, more.keys]), torch.cat([layer.values, more.values])


def _states(layer: Any) -> list[dict[int, Any]]:
    """The states of convolutions and recurrences. They have no columns."""
    return [getattr(layer, name) for name in _STATES if isinstance(getattr(layer, name, None), dict)]


def _has_keys(layer: Any) -> bool:
    return isinstance(layer, DynamicLayer) and layer.keys is not None and layer.keys.dim() == 4


def _set_width(layer: Any, width: int) -> None:
    """Cut off or add padding on the left, as if the prompts had been padded to that."""
    held = width
    if isinstance(layer, DynamicSlidingWindowLayer):
        held = min(width, layer.sliding_window - 1)
        layer.cumulative_length = width
    more = held - layer.keys.shape[-2]
    if more:
        layer.keys, layer.values = (pad(states, (0, 0, more, 0)) for states in (layer.keys, layer.values))
