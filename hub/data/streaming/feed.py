"""The samples of one stream, one after the other, and where it is. What makes them runs beside: see workers.py."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from hub.data.samples.blocks import Blocks
from hub.data.samples.counts import MOST_LISTED
from hub.data.samples.sample import Item, Sample
from hub.data.streaming.frames import window_from
from hub.data.streaming.windows import FIRST, Window
from hub.errors import DataError

Frames = Iterator[Window | list[Item] | None]
Shards = Callable[[Window, int], Sequence[Frames]]
"""Opens the processes that share the work, from a window on and so many rows into it."""


class Feed:
    """Takes samples from a stream, and knows where it is."""

    def __init__(self, path: str, shards: Shards, block_size: int | None = None) -> None:
        """Args:
        path: of the source, for messages.
        shards: opens the processes, from a place on.
        block_size: tokens of a sample to which documents are joined.
        """
        self._path, self._open = path, shards
        self._blocks = Blocks(block_size) if block_size is not None else None
        self._shards: Sequence[Frames] = ()
        self._begun = False
        self._window, self._place = FIRST, 0
        self._ready: deque[Sample] = deque()
        self._num_given = 0
        """Samples that the last row which was read has given; those behind are in `_ready`."""

        self._before_row: dict[str, Any] | None = None
        self._found_in_turn = 0
        self.counts = {
            "num_rows": 0,
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
        self.left_out: list[dict[str, Any]] = []
        """Rows that were left out, the first ones."""

    @property
    def num_passes(self) -> int:
        """Whole passes over the source so far."""
        return self._window.turn

    def take(self, count: int) -> list[Sample]:
        """The next samples.

        Raises:
            DataError: a row can't be used, or a whole pass had no row that can.
        """
        found: list[Sample] = []
        while len(found) < count:
            while not self._ready:
                self._read_row()
            sample = self._ready.popleft()
            self._num_given += 1
            self.counts["num_samples"] += 1
            self.counts["num_tokens"] += len(sample)
            self.counts["num_loss_tokens"] += int(sample.loss_mask.sum())
            self.counts["longest"] = max(self.counts["longest"], len(sample))
            found.append(sample)
        return found

    def state(self) -> dict[str, Any]:
        """Where it is, and what it counted. JSON."""
        # A row that has samples left is read again, and those that it has given are passed over.
        place = self._before_row if self._ready and self._before_row is not None else self._here()
        given = self._num_given if self._ready else 0
        return {**place, "num_given": given, "counts": dict(self.counts), "left_out": list(self.left_out)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`. Nothing has been taken yet."""
        self._window, self._place = window_from(state["window"]), state["place"]
        self._found_in_turn = state["found_in_turn"]
        if self._blocks is not None:
            self._blocks.restore(state["blocks"])
        if state["num_given"]:
            self._read_row()
            for _ in range(state["num_given"]):
                self._ready.popleft()
            self._num_given = state["num_given"]
        self.counts, self.left_out = dict(state["counts"]), list(state["left_out"])

    def start(self) -> None:
        """Begin to make samples. Without it, that begins with the first one that is taken."""
        if not self._shards:
            self._shards = self._open(self._window, self._place)

    def _here(self) -> dict[str, Any]:
        """Where the next row begins."""
        blocks = self._blocks.state() if self._blocks is not None else None
        return {"window": asdict(self._window), "place": self._place, "found_in_turn": self._found_in_turn, "blocks": blocks}

    def _read_row(self) -> None:
        """Read one row and make its samples ready."""
        items = self._next()
        self._num_given = 0
        first = items[0]
        if first.bad:
            self.counts["num_bad_rows"] += 1
            self._list(first)
            return
        self.counts["num_rows"] += 1
        self.counts["num_rows_split"] += len(items) > 1
        for item in items:
            self.counts["num_rows_with_texts_omitted"] += item.omitted
            self.counts["num_rows_cut"] += item.num_cut > 0
            self.counts["num_tokens_cut"] += item.num_cut
            if item.sample is None:
                self.counts["num_left_out"] += 1
                self.counts["num_tokens_left_out"] += item.num_tokens
                self._list(item)
                continue
            self._found_in_turn += 1
            if self._blocks is not None and item.format == "document":
                self._ready.extend(self._blocks.add(item.sample))
            else:
                self._ready.append(item.sample)

    def _list(self, item: Item) -> None:
        if len(self.left_out) < MOST_LISTED:
            self.left_out.append({"where": item.where, "num_tokens": item.num_tokens, "reason": item.reason})

    def _next(self) -> list[Item]:
        """The items of the next row."""
        self.start()
        if not self._begun:
            self._begun = True
            self._read_window()
        while self._place == self._window.size:
            before = self._window.turn
            self._place = 0
            self._read_window()
            if self._window.turn > before:
                if not self._found_in_turn:
                    first = f" The first: {self.left_out[0]['reason']}" if self.left_out else ""
                    raise DataError(
                        f"{self._path}: no row is left to train on: all of a whole pass are too long or bad.{first}"
                    )
                self._found_in_turn = 0
        self._before_row = self._here()
        found = self._read(self._place % len(self._shards))
        assert isinstance(found, list)
        self._place += 1
        return found

    def _read_window(self) -> None:
        for number in range(len(self._shards)):
            window = self._read(number)
            assert isinstance(window, Window)
            self._window = window

    def _read(self, shard: int) -> Window | list[Item]:
        found = next(self._shards[shard], None)
        if found is None:
            raise DataError(f"{self._path}: the process that reads it ended without a message (out of memory on the host?)")
        return found
