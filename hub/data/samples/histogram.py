"""Tokens per row or sample: percentiles, a histogram, a recommended `data.max_seq_len`."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np


class Bin(TypedDict("Range", {"from": int})):
    """A bar of the histogram: rows of `from` to `to` tokens."""

    to: int
    num_rows: int


class Lengths(TypedDict, total=False):
    """Tokens per row. Where there is no row, `num_rows` alone."""

    num_rows: int
    mean: float
    median: int
    p95: int
    p99: int
    max: int
    recommended_max_seq_len: int
    histogram: list[Bin]


def lengths_of(lengths: Sequence[int], limit: int | None) -> Lengths:
    """Summarize the lengths of rows.

    Args:
        lengths: tokens of each row that can be used.
        limit: tokens of the longest sample. None: any.
    """
    if not lengths:
        return {"num_rows": 0}
    values = np.asarray(lengths)
    median, p95, p99 = (int(np.percentile(values, percent, method="higher")) for percent in (50, 95, 99))
    longest = int(values.max())
    # All rows where that costs little, else all but the longest hundredth.
    wanted = longest if longest <= 1.5 * p99 else p99
    recommended = min(-(-wanted // 64) * 64, limit or longest + 64)
    edges = np.unique(np.round(np.geomspace(max(1, values.min()), longest + 1, 13)).astype(int))
    counts, _ = np.histogram(values, edges)
    bins = zip(edges, edges[1:], counts, strict=False)
    return {
        "num_rows": len(values),
        "mean": round(float(values.mean()), 1),
        "median": median,
        "p95": p95,
        "p99": p99,
        "max": longest,
        "recommended_max_seq_len": int(recommended),
        "histogram": [{"from": int(start), "to": int(end) - 1, "num_rows": int(count)} for start, end, count in bins],
    }
