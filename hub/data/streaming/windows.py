"""Data that is read while training, in windows of shuffled rows. Memory holds one window of one source.

A pass over a source is cut into windows of `data.shuffle_window` rows in the order of the files. The rows of a window are
permuted by seed, source, pass and window; windows follow one another. So the samples depend on config and files only. A run
that is resumed in the middle of a window reads it again from its beginning: see `Window.cursor`.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypedDict

from hub.config.data import DataSource
from hub.config.paths import is_hub_id
from hub.data.samples.sample import Item, Unit, fingerprint
from hub.data.sources.entries import Cursor, Entry
from hub.data.sources.files import data_files
from hub.data.sources.read import rows_after
from hub.data.tokens.encode import Encoder
from hub.errors import DataError

EDGE_BYTES = 2**20


class CursorState(TypedDict):
    """A `Cursor` as JSON."""

    file: int
    offset: int
    line: int


class WindowState(TypedDict):
    """A `Window` as JSON."""

    turn: int
    number: int
    cursor: CursorState
    size: int


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive rows that are shuffled together."""

    turn: int
    """Passes over the source before this one."""

    number: int
    """Windows of this pass before this one."""

    cursor: Cursor
    """Where it begins."""

    size: int
    """Rows in it."""

    def state(self) -> WindowState:
        """The window as JSON, for `window_from`."""
        cursor = CursorState(file=self.cursor.file, offset=self.cursor.offset, line=self.cursor.line)
        return {"turn": self.turn, "number": self.number, "cursor": cursor, "size": self.size}


def window_from(state: WindowState) -> Window:
    """The window of a `state`."""
    return Window(state["turn"], state["number"], Cursor(**state["cursor"]), state["size"])


FIRST = Window(0, 0, Cursor(), 0)


def windows(
    source: DataSource, seed: int, number: int, size: int, begin: Window = FIRST
) -> Iterator[tuple[Window, list[Entry]]]:
    """The windows of a source, pass after pass without end, each with its rows in their order.

    Args:
        source: where the rows come from.
        seed: `algo.seed`.
        number: number of the source in the mix.
        size: rows in a window.
        begin: the window to begin with, which was given before. Its `size` is not read.

    Raises:
        DataError: a row can't be read, or there is none.
    """
    turn, count, cursor = begin.turn, begin.number, begin.cursor
    while True:
        rows = rows_after(source.path, cursor, source.subset, source.split)
        while window := list(islice(rows, size)):
            order = [row for row, _ in window]
            random.Random(f"{seed}/{number}/{turn}/{count}").shuffle(order)
            yield Window(turn, count, cursor, len(order)), order
            count, cursor = count + 1, window[-1][1]
        if count == 0:
            raise DataError(f"{source.path}: it holds no rows. Give a file with at least one")
        turn, count, cursor = turn + 1, 0, Cursor()


def in_order(source: DataSource, size: int = 512) -> Iterator[tuple[Window, list[Entry]]]:
    """All rows of a source once and in their order, in windows. The last one is empty."""
    rows = rows_after(source.path, Cursor(), source.subset, source.split, stream=False)
    number = 0
    while window := [row for row, _ in islice(rows, size)]:
        yield Window(0, number, Cursor(), len(window)), window
        number += 1
    yield Window(0, number, Cursor(), 0), []


def items(
    encode: Encoder, source: Iterator[tuple[Window, list[Entry]]], skip: int = 0, shard: int = 0, num_shards: int = 1
) -> Iterator[Window | list[Item]]:
    """Each window, followed by the items of those of its rows that this process encodes.

    Args:
        encode: turns a row into its items.
        source: from `windows`.
        skip: rows of the first window that are left out.
        shard: which rows of each window this process encodes: every `num_shards`-th from this one.
        num_shards: the processes that share the work.
    """
    for window, rows in source:
        yield window
        mine = (row for place, row in enumerate(rows) if place % num_shards == shard and place >= skip)
        yield from encode.many(mine)
        skip = 0


def content_hash(path: str, first: Sequence[Unit], split: str = "train") -> str:
    """A fingerprint of data that is too large to be read for it: sizes, first and last megabyte, first units.

    Times and places of files don't count. A change in the middle of a file that keeps its size goes unnoticed.

    Args:
        path: as for `read_rows`.
        first: the first units, so that another tokenizer or template changes the hash.
        split: as for `read_rows`.
    """
    digest = hashlib.sha256()
    for file in [] if is_hub_id(path) else data_files(path, split):
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(EDGE_BYTES))
            stream.seek(max(0, size - EDGE_BYTES))
            digest.update(stream.read(EDGE_BYTES))
    if first:
        digest.update(fingerprint(first).encode())
    return digest.hexdigest()
