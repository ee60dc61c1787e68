"""Lines on how far a slow part is. A part that is quick says nothing."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
Say = Callable[[str], None]

SECONDS_BETWEEN_LINES = 10.0


def counted(items: Iterable[T], total: int, what: str, say: Say) -> Iterator[T]:
    """Yield all items, with a line every ten seconds on how many are done.

    Args:
        items: whatever is worked on.
        total: how many there are.
        what: the line, with {} for the numbers: `merging: {} tensors`.
        say: receives the lines.
    """
    last = time.monotonic()
    for number, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES and number < total:
            last = now
            say(what.format(f"{number} of {total}"))


def silent(line: str) -> None:
    """Say nothing."""
