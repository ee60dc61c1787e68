"""Pairs of texts that are nearly the same, by the share of word sequences that both have.

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
"""With bands of 4 hashes, a pair with four fifths in common is found with a probability above 0.9998."""

SEQUENCE_WORDS = 3
"""Words in a sequence."""

MIN_IN_COMMON = 0.8
"""Share of the sequences of two texts that both have, above which they are near duplicates."""

MAX_IN_BUCKET = 50
MAX_WORDS = 2000
"""Of a longer text only the beginning is compared."""

_PRIME = (1 << 61) - 1


def near_duplicates(texts: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of near duplicates, as places in `texts`, the smaller one first.

    Case, punctuation and white space don't count. Texts with fewer words than a sequence has are never near duplicates.
    """
    sequences = [_sequences(text) for text in texts]
    rng = np.random.default_rng(0)
    factors = rng.integers(1, 1 << 31, NUM_HASHES, dtype=np.uint64)
    offsets = rng.integers(0, 1 << 31, NUM_HASHES, dtype=np.uint64)
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for place, hashes in enumerate(sequences):
        if len(hashes):
            least = ((hashes[:, None] * factors + offsets) % np.uint64(_PRIME)).min(axis=0)
            for band, minima in enumerate(least.reshape(NUM_BANDS, -1)):
                buckets[band, minima.tobytes()].append(place)
    candidates = {pair for places in buckets.values() for pair in combinations(islice(places, MAX_IN_BUCKET), 2)}
    return sorted(pair for pair in candidates if _in_common(sequences[pair[0]], sequences[pair[1]]) >= MIN_IN_COMMON)


def _sequences(text: str) -> npt.NDArray[np.uint64]:
    """The different word sequences, each as a hash."""
    words = re.findall(r"\w+", text[: 20 * MAX_WORDS].lower())[:MAX_WORDS]
    hashes = {
        zlib.crc32(" ".join(words[n : n + SEQUENCE_WORDS]).encode("utf-8", "replace"))
        for n in range(len(words) - SEQUENCE_WORDS + 1)
    }
    return np.fromiter(sorted(hashes), np.uint64, len(hashes))


def _in_common(first: npt.NDArray[np.uint64], second: npt.NDArray[np.uint64]) -> float:
    both = len(np.intersect1d(first, second, assume_unique=True))
    return both / (len(first) + len(second) - both)
