"""What the doctor says of preference pairs: answers that hardly differ, labels that may be swapped, a bias to long answers."""

import math
from collections.abc import Iterator, Sequence

from hub.data.doctor.findings import MAX_EXAMPLES, Finding
from hub.data.doctor.pairs import ScannedPair

MOST_LONGER = 0.6
"""Share of pairs in which the chosen answer is the longer one above which length may be learned in place of quality."""

FEWEST = 20
"""Pairs of different lengths below which nothing is said of them."""


def of_pairs(pairs: Sequence[ScannedPair]) -> Iterator[Finding]:
    """Findings on all pairs of a run.

    Args:
        pairs: of all sources.
    """
    same = [pair.where for pair in pairs if pair.chosen == pair.rejected]
    if same:
        advice = "Take them out: they teach case and spaces"
        yield Finding("look", "pairs whose answers differ in case and spaces only", len(same), _first(same), advice)
    yield from _of_swaps(pairs)
    yield from _of_lengths(pairs)


def _of_swaps(pairs: Sequence[ScannedPair]) -> Iterator[Finding]:
    scored = [pair for pair in pairs if pair.scores is not None]
    lower = [pair.where for pair in scored if pair.scores is not None and pair.scores[0] < pair.scores[1]]
    if lower:
        what = (
            f"pairs in which the chosen answer has the lower score, of {len(scored):,} with scores: their labels may be swapped"
        )
        yield Finding("bad", what, len(lower), _first(lower), "Swap chosen and rejected, or take them out")
    known = {(pair.prompt, pair.chosen, pair.rejected): pair.where for pair in pairs if pair.chosen != pair.rejected}
    both = [
        f"{pair.where} / {other}"
        for pair in pairs
        if (other := known.get((pair.prompt, pair.rejected, pair.chosen))) and pair.where < other
    ]
    if both:
        what = "pairs are contradicted by another one, which has the same answers the other way round"
        yield Finding("bad", what, len(both), _first(both), "Keep one of the two: the labels of the other may be swapped")


def _of_lengths(pairs: Sequence[ScannedPair]) -> Iterator[Finding]:
    unequal = [pair.lengths for pair in pairs if pair.lengths[0] != pair.lengths[1]]
    if len(unequal) < FEWEST:
        return
    longer = sum(chosen > rejected for chosen, rejected in unequal)
    share, error = longer / len(unequal), 0.5 / math.sqrt(len(unequal))
    if abs(share - 0.5) < max(MOST_LONGER - 0.5, 2 * error):
        return
    means = [sum(pair.lengths[side] for pair in pairs) / len(pairs) for side in (0, 1)]
    word, number = ("longer", longer) if share > 0.5 else ("shorter", len(unequal) - longer)
    what = (
        f"pairs in which the chosen answer is the {word} one, of {len(unequal):,} with different lengths "
        f"({number / len(unequal):.0%}; {means[0]:.0f} tokens on average, rejected ones {means[1]:.0f})"
    )
    advice = "Length may be learned in place of what is better. algo.length_normalized=true and algo.loss=simpo weigh it less"
    yield Finding("look", what, number, (), advice)


def _first(places: Sequence[str]) -> tuple[str, ...]:
    return tuple(places[:MAX_EXAMPLES])
