"""The longest row that fits: what to try next, from what got through and what did not."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

CLOSE = 1.04
"""It is known well enough when what is too long is at most this many times as long as what fits."""

STEP = 512
"""Tokens; lengths are multiples of it."""

FARTHEST = 4
"""No try is longer than so many times the longest that got through: one far too long takes its time as well."""

FILLED = 0.98
"""Of the memory, at the length that the straight line through the last two peaks points at."""


@dataclass(frozen=True)
class Fit:
    """A length that got through, and the memory that it took at most."""

    tokens: int
    peak_bytes: float


def next_length(fits: list[Fit], too_long: int | None, capacity: float | None) -> int | None:
    """What to try next; None when it is known well enough.

    Memory grows with the length in a straight line, so two lengths tell where it ends; else lengths are doubled. Between what
    fits and what does not, the middle is tried, or where the line points to if that lies between.

    Args:
        fits: the lengths that got through, ascending.
        too_long: the shortest that did not.
        capacity: bytes of the GPU.
    """
    if not fits:
        shorter = (too_long or 0) // 2 // STEP * STEP
        return shorter or None
    best = fits[-1].tokens
    if too_long is not None and (too_long <= CLOSE * best or too_long - best <= STEP):
        return None
    guess = where_memory_ends(fits, capacity)
    if too_long is None:
        wanted = min(guess, FARTHEST * best) if guess is not None else 2 * best
        wanted = max(wanted, CLOSE * best)
    else:
        wanted = guess if guess is not None and best * CLOSE < guess < too_long / CLOSE else (best + too_long) / 2
    found = max(int(wanted) // STEP * STEP, best + STEP)
    return found if too_long is None else min(found, too_long - STEP)


def where_memory_ends(fits: list[Fit], capacity: float | None) -> float | None:
    """The length at which the straight line through the last two peaks fills the memory; None when it can't be told."""
    if len(fits) < 2 or capacity is None:
        return None
    first, second = fits[-2:]
    slope = (second.peak_bytes - first.peak_bytes) / (second.tokens - first.tokens)
    return second.tokens + (FILLED * capacity - second.peak_bytes) / slope if slope > 0 else None


@dataclass(frozen=True)
class Found:
    """How a search ended."""

    longest: int
    """That got through; 0: none."""

    too_long: int | None
    """The shortest that did not."""

    line_ends: int | None
    """Where the straight line through the last two peaks fills the memory."""


def search(attempt: Callable[[int], Fit | Literal[False] | None], first: int, capacity: Callable[[], float | None]) -> Found:
    """Look for the longest row that fits.

    Args:
        attempt: tries a length: what it took, False when memory ran out, None when the search can't go on.
        first: length to begin with.
        capacity: bytes of the GPU, once a try has told them.
    """
    fits: list[Fit] = []
    too_long: int | None = None
    tokens: int | None = first
    while tokens is not None:
        fit = attempt(tokens)
        if fit is None:
            break
        if fit is False:
            too_long = min(tokens, too_long or tokens)
        else:
            fits = sorted([*fits, fit], key=lambda fit: fit.tokens)
        tokens = next_length(fits, too_long, capacity())
    ends = where_memory_ends(fits, capacity())
    return Found(fits[-1].tokens if fits else 0, too_long, int(ends) if ends else None)
