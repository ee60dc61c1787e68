"""The units of one stream, one after the other, and its position. The processes that make them: see workers.py."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TypedDict

from hub.data.json_values import JsonObject
from hub.data.samples.blocks import Blocks, BlocksState
from hub.data.samples.counts import MAX_LISTED
from hub.data.samples.sample import Item, Sample, Unit, longest_sample, mask_sum
from hub.data.streaming.windows import FIRST, Window, WindowState, window_from
from hub.errors import DataError

Frames = Iterator[Window | list[Item] | None]
"""What one process makes. None: it ended."""

OpenShards = Callable[[Window, int], Sequence[Frames]]
"""Starts the processes that share a source, from a window on and so many rows into it."""


class StreamPosition(TypedDict):
    """Where the next row begins. JSON."""

    window: WindowState
    place: int
    found_in_turn: int
    blocks: BlocksState | None


class StreamState(StreamPosition):
    """All that a stream needs to continue. JSON."""

    num_given: int
    counts: dict[str, int]
    left_out: list[JsonObject]
    bad_rows: list[JsonObject]
    num_texts_omitted: dict[str, int]
    texts_omitted: dict[str, list[str]]


class SampleStream:
    """Takes units from a stream without end, and knows its position."""

    def __init__(self, path: str, open_shards: OpenShards, block_size: int | None = None) -> None:
        """Args:
        path: of the source, for messages.
        open_shards: starts the processes from a position on.
        block_size: tokens of a sample to which documents are joined.
        """
        self._path, self._open = path, open_shards
        self._blocks = Blocks(block_size) if block_size is not None else None
        self._shards: Sequence[Frames] = ()
        self._begun = False
        self._window, self._place = FIRST, 0
        self._ready: deque[Unit] = deque()
        self._num_given = 0
        """Units that the last row has given so far. The others are in `_ready`."""

        self._before_row: StreamPosition | None = None
        self._num_this_turn = 0
        self.counts = {
            "num_rows": 0,
            "num_units": 0,
            "num_samples": 0,
            "num_tokens": 0,
            "num_loss_tokens": 0,
            "longest": 0,
            "num_left_out": 0,
            "num_tokens_left_out": 0,
            "num_bad_rows": 0,
            "num_rows_cut": 0,
            "num_tokens_cut": 0,
            "num_rows_split": 0,
            "num_rows_with_texts_omitted": 0,
        }
        self.left_out: list[JsonObject] = []
        """The first rows that are too long."""

        self.bad_rows: list[JsonObject] = []
        """The first rows that can't be used."""

        self.num_texts_omitted: dict[str, int] = {}
        """What the chat template leaves out -> number of rows. The keys are those of `hub.data.tokens.omissions.KINDS`."""

        self.texts_omitted: dict[str, list[str]] = {}
        """What the chat template leaves out -> the first of these rows."""

    @property
    def num_passes(self) -> int:
        """Whole passes over the source so far."""
        return self._window.turn

    def take(self, count: int) -> list[Unit]:
        """The next units.

        Raises:
            DataError: a row can't be used, or a whole pass had no row that can.
        """
        units: list[Unit] = []
        while len(units) < count:
            while not self._ready:
                self._read_row()
            unit = self._ready.popleft()
            self._num_given += 1
            self.counts["num_units"] += 1
            self.counts["num_samples"] += len(unit.samples)
            self.counts["num_tokens"] += len(unit)
            self.counts["num_loss_tokens"] += mask_sum(unit)
            self.counts["longest"] = max(self.counts["longest"], longest_sample([unit]))
            units.append(unit)
        return units

    def state(self) -> StreamState:
        """Its position, and what it counted."""
        # A row with units left is read again, and the units that it has given are skipped.
        position = self._before_row if self._ready and self._before_row is not None else self._position()
        num_given = self._num_given if self._ready else 0
        return {
            **position,
            "num_given": num_given,
            "counts": dict(self.counts),
            "left_out": list(self.left_out),
            "bad_rows": list(self.bad_rows),
            "num_texts_omitted": dict(self.num_texts_omitted),
            "texts_omitted": {kind: list(where) for kind, where in self.texts_omitted.items()},
        }

    def restore(self, state: StreamState) -> None:
        """Continue from a `state`. Nothing has been taken yet."""
        self._window, self._place = window_from(state["window"]), state["place"]
        self._num_this_turn = state["found_in_turn"]
        if self._blocks is not None and state["blocks"] is not None:
            self._blocks.restore(state["blocks"])
        if state["num_given"]:
            self._read_row()
            self._num_given = min(state["num_given"], len(self._ready))  # fewer, if rows are cut otherwise now
            for _ in range(self._num_given):
                self._ready.popleft()
        self.counts, self.left_out = self.counts | state["counts"], list(state["left_out"])
        # A checkpoint of an earlier release has none of these.
        self.bad_rows = list(state.get("bad_rows", ()))
        self.num_texts_omitted = dict(state.get("num_texts_omitted", {}))
        self.texts_omitted = {kind: list(where) for kind, where in state.get("texts_omitted", {}).items()}

    def start(self) -> None:
        """Start the processes now. Otherwise they start when the first unit is taken."""
        if not self._shards:
            self._shards = self._open(self._window, self._place)

    def _position(self) -> StreamPosition:
        """Where the next row begins."""
        blocks = self._blocks.state() if self._blocks is not None else None
        return {"window": self._window.state(), "place": self._place, "found_in_turn": self._num_this_turn, "blocks": blocks}

    def _read_row(self) -> None:
        """Read one row and make its units ready."""
        items = self._next()
        self._num_given = 0
        first = items[0]
        if first.bad:
            self.counts["num_bad_rows"] += 1
            if len(self.bad_rows) < MAX_LISTED:
                self.bad_rows.append({"where": first.where, "reason": first.reason})
            return
        self.counts["num_rows"] += 1
        self.counts["num_rows_split"] += len(items) > 1
        for item in items:
            self._count_omitted(item)
            self.counts["num_rows_cut"] += item.num_cut > 0
            self.counts["num_tokens_cut"] += item.num_cut
            if item.unit is None:
                self.counts["num_left_out"] += 1
                self.counts["num_tokens_left_out"] += item.num_tokens
                if len(self.left_out) < MAX_LISTED:
                    self.left_out.append({"where": item.where, "num_tokens": item.num_tokens, "reason": item.reason})
                continue
            self._num_this_turn += 1
            if self._blocks is not None and item.format == "document" and isinstance(item.unit, Sample):
                self._ready.extend(self._blocks.add(item.unit))
            else:
                self._ready.append(item.unit)

    def _count_omitted(self, item: Item) -> None:
        self.counts["num_rows_with_texts_omitted"] += bool(item.omitted)
        for kind in item.omitted:
            self.num_texts_omitted[kind] = self.num_texts_omitted.get(kind, 0) + 1
            listed = self.texts_omitted.setdefault(kind, [])
            if len(listed) < MAX_LISTED and not self.num_passes:
                listed.append(item.where)

    def _next(self) -> list[Item]:
        """The items of the next row."""
        self.start()
        if not self._begun:
            self._begun = True
            self._read_window()
        while self._place == self._window.size:
            turn = self._window.turn
            self._place = 0
            self._read_window()
            if self._window.turn > turn:
                self._end_pass()
        self._before_row = self._position()
        items = self._read(self._place % len(self._shards))
        assert isinstance(items, list)
        self._place += 1
        return items

    def _end_pass(self) -> None:
        """Refuse a source of which a whole pass gave nothing."""
        if not self._num_this_turn:
            unusable = [*self.bad_rows, *self.left_out]
            first = f" The first: {unusable[0]['reason']}" if unusable else ""
            raise DataError(f"{self._path}: no row is left to train on: all of a whole pass are too long or bad.{first}")
        self._num_this_turn = 0

    def _read_window(self) -> None:
        for number in range(len(self._shards)):
            window = self._read(number)
            assert isinstance(window, Window)
            self._window = window

    def _read(self, shard: int) -> Window | list[Item]:
        frame = next(self._shards[shard], None)
        if frame is None:
            raise DataError(f"{self._path}: the process that reads it was killed without a report (out of CPU memory?)")
        return frame
