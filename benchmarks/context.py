"""Search for the longest row that fits: which length to try next, given which fit and which did not."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

CLOSE = 1.04
"""The search ends when the shortest length that does not fit is at most this many times the longest that fits."""

STEP = 512
"""Lengths are multiples of this number of tokens."""

FARTHEST = 4
"""No attempt is longer than this many times the longest that fit, since failing takes time, too."""

FILLED = 0.98
"""Fraction of the memory that counts as full when the memory of two lengths is extrapolated."""


@dataclass(frozen=True)
class Fit:
    """A length that fit, and its peak memory."""

    tokens: int
    peak_bytes: float


def next_length(fits: list[Fit], too_long: int | None, capacity: float | None) -> int | None:
    """Return the length to try next. None: the search is done.

    Memory is linear in the length, so two lengths give the one that fills it. With fewer, lengths are doubled. Between one that
    fits and one that does not, the extrapolated length is tried if it is between them, else the middle.

    Args:
        fits: the lengths that fit, ascending.
        too_long: the shortest that did not fit.
        capacity: memory of the GPU in bytes.
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
    rounded = max(int(wanted) // STEP * STEP, best + STEP)
    return rounded if too_long is None else min(rounded, too_long - STEP)


def where_memory_ends(fits: list[Fit], capacity: float | None) -> float | None:
    """Extrapolate the last two peaks to the length that fills the memory. None: unknown."""
    if len(fits) < 2 or capacity is None:
        return None
    first, second = fits[-2:]
    slope = (second.peak_bytes - first.peak_bytes) / (second.tokens - first.tokens)
    return second.tokens + (FILLED * capacity - second.peak_bytes) / slope if slope > 0 else None


@dataclass(frozen=True)
class SearchResult:
    """The result of a search."""

    longest: int
    """The longest length that fit. 0: none did."""

    too_long: int | None
    """The shortest length that did not fit."""

    extrapolated: int | None
    """The length that would fill the memory, extrapolated from the last two peaks."""


def search(
    attempt: Callable[[int], Fit | Literal[False] | None], first: int, capacity: Callable[[], float | None]
) -> SearchResult:
    """Search for the longest row that fits.

    Args:
        attempt: tries a length. Returns its memory, False if memory ran out, or None to end the search.
        first: length to begin with.
        capacity: memory of the GPU in bytes, known after the first attempt.
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
    return SearchResult(fits[-1].tokens if fits else 0, too_long, int(ends) if ends else None)
