"""Texts that are nearly the same: by the share of their sequences of words that both have.

MinHash (Broder 1997) finds candidates without comparing all pairs; each candidate is then compared exactly.
"""

import re
import zlib
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations, islice

import numpy as np
import numpy.typing as npt

NUM_HASHES, NUM_BANDS = 64, 16
"""With bands of 4 hashes a pair that has four fifths in common is found with a probability above 0.9998."""

WORDS = 3
"""Words in a sequence."""

LEAST = 0.8
"""Share of all sequences of two texts that both have, from which they are nearly the same."""

MOST_IN_BUCKET = 50
MOST_WORDS = 2000
"""Of a longer text only the beginning is looked at."""

_PRIME = (1 << 61) - 1


def near_duplicates(texts: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of texts that are nearly the same, by their places; the smaller place first.

    Case, punctuation and white space don't count. Texts with fewer words than make a sequence are never nearly the same.
    """
    sequences = [_sequences(text) for text in texts]
    rng = np.random.default_rng(0)
    factors = rng.integers(1, 1 << 31, NUM_HASHES, dtype=np.uint64)
    offsets = rng.integers(0, 1 << 31, NUM_HASHES, dtype=np.uint64)
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for place, found in enumerate(sequences):
        if len(found):
            least = ((found[:, None] * factors + offsets) % np.uint64(_PRIME)).min(axis=0)
            for band, part in enumerate(least.reshape(NUM_BANDS, -1)):
                buckets[band, part.tobytes()].append(place)
    candidates = {pair for places in buckets.values() for pair in combinations(islice(places, MOST_IN_BUCKET), 2)}
    return sorted(pair for pair in candidates if _in_common(sequences[pair[0]], sequences[pair[1]]) >= LEAST)


def _sequences(text: str) -> npt.NDArray[np.uint64]:
    """The different sequences of words, each as a number."""
    words = re.findall(r"\w+", text[: 20 * MOST_WORDS].lower())[:MOST_WORDS]
    found = {zlib.crc32(" ".join(words[n : n + WORDS]).encode("utf-8", "replace")) for n in range(len(words) - WORDS + 1)}
    return np.fromiter(sorted(found), np.uint64, len(found))


def _in_common(first: npt.NDArray[np.uint64], second: npt.NDArray[np.uint64]) -> float:
    both = len(np.intersect1d(first, second, assume_unique=True))
    return both / (len(first) + len(second) - both)
