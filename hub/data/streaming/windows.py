"""Data that is read while training: windows of rows, each in an order of its own. Memory holds one window of one source.

A pass over a source is cut into windows of `data.shuffle_window` rows in the order of the files. The rows of a window are
permuted by seed, source, pass and window; windows follow one another. So the samples depend on config and files only, and a run
goes on in the middle of a window from where that begins: see `Window.cursor`.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from hub.config.data import DataSource
from hub.config.paths import is_hub_id
from hub.data.samples.sample import Item, Sample
from hub.data.sources.files import data_files
from hub.data.sources.read import Cursor, Entry, rows_after
from hub.data.tokens.encode import Encoder
from hub.errors import DataError

EDGE_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of rows that are shuffled together."""

    turn: int
    """Passes over the source before this one."""

    number: int
    """Windows of this pass before this one."""

    cursor: Cursor
    """Where it begins."""

    size: int
    """Rows in it."""


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
        begin: the window to begin with, for one that was given before; its `size` is not read.

    Raises:
        DataError: a row can't be read, or there is none.
    """
    turn, count, cursor = begin.turn, begin.number, begin.cursor
    while True:
        rows = rows_after(source.path, cursor, source.subset, source.split)
        while held := list(islice(rows, size)):
            order = [row for row, _ in held]
            random.Random(f"{seed}/{number}/{turn}/{count}").shuffle(order)
            yield Window(turn, count, cursor, len(order)), order
            count, cursor = count + 1, held[-1][1]
        if count == 0:
            raise DataError(f"{source.path}: there is no row in it. Give a file with at least one")
        turn, count, cursor = turn + 1, 0, Cursor()


def in_order(source: DataSource, size: int = 512) -> Iterator[tuple[Window, list[Entry]]]:
    """All rows of a source once and in their order, in windows; the last one is empty."""
    rows = rows_after(source.path, Cursor(), source.subset, source.split, stream=False)
    number = 0
    while held := [row for row, _ in islice(rows, size)]:
        yield Window(0, number, Cursor(), len(held)), held
        number += 1
    yield Window(0, number, Cursor(), 0), []


def items(
    encode: Encoder, found: Iterator[tuple[Window, list[Entry]]], skip: int = 0, shard: int = 0, num_shards: int = 1
) -> Iterator[Window | list[Item]]:
    """Each window, followed by the items of each of its rows: of several processes that share the work, those of one.

    Args:
        encode: turns a row into its items.
        found: from `windows`.
        skip: rows of the first window that are left out.
        shard: which rows of each window this process encodes: every `num_shards`-th from this one.
        num_shards: the processes that share the work.
    """
    for window, rows in found:
        yield window
        for place, row in enumerate(rows):
            if place % num_shards == shard and place >= skip:
                yield encode(row)
        skip = 0


def content_hash(path: str, first: Sequence[Sample]) -> str:
    """A fingerprint of data that is too large to be read for it: sizes, first and last megabyte, first samples.

    Times and places of files don't count. A change in the middle of a file that keeps its size is not seen.

    Args:
        path: as for `read_rows`.
        first: the first samples, so that another tokenizer or template is seen.
    """
    found = hashlib.sha256()
    for file in [] if is_hub_id(path) else data_files(path):
        size = file.stat().st_size
        found.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as stream:
            found.update(stream.read(EDGE_BYTES))
            stream.seek(max(0, size - EDGE_BYTES))
            found.update(stream.read(EDGE_BYTES))
    for sample in first:
        found.update(sample.input_ids.tobytes() + sample.loss_mask.tobytes())
    return found.hexdigest()
