"""Standard errors, intervals and tests of what is measured on rows. numpy alone.

Rows are the units that are drawn: the tokens of a row are not independent of each other, so a loss per token is a ratio of two
sums over rows, whose variance is that of the ratio estimator (Cochran, Sampling Techniques, 3rd ed., 1977, section 6.4). Two
models on the same rows are compared row by row.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LEVEL = 0.95
"""Probability with which an interval holds the true value."""

NORMAL_QUANTILE = 1.959963984540054
"""Of the normal distribution, for an interval with `LEVEL`."""

NUM_RESAMPLES = 4000
"""Resamples of a bootstrap: the smallest p that it gives is one over this."""

_CHUNK = 2**22


@dataclass(frozen=True)
class Difference:
    """Second model minus first one, on the same rows."""

    value: float
    low: float
    """The interval that holds the true difference with probability `LEVEL`."""

    high: float
    p: float
    """Probability of a difference as large if the models were equally good."""

    test: str
    """`mcnemar` or `bootstrap`."""


def ratio(sums: Floats, counts: Floats) -> tuple[float, float | None]:
    """The ratio of two sums over rows, such as a loss per token, and its standard error.

    With all counts 1 it is the mean, and its standard error is the usual one.

    Args:
        sums: (n,) of each row, e.g. its nats.
        counts: (n,) of each row, e.g. its tokens. Their sum is above 0.

    Returns:
        The ratio; and the standard error, None for a single row.
    """
    value = float(sums.sum() / counts.sum())
    return value, _error(sums - value * counts, counts)


def compare(first: Floats, second: Floats, counts: Floats, seed: int) -> Difference | None:
    """Compare two models on the same rows.

    Figures of 0 and 1 are tested with McNemar's exact test, others with a paired bootstrap. The interval is that of the normal
    approximation, with Student's quantile.

    Args:
        first: (n,) sums of each row, of one model.
        second: (n,) the same of the other one.
        counts: (n,) what each row counts.
        seed: of the bootstrap.

    Returns:
        The difference of the ratios. None for a single row.
    """
    if len(first) < 2 or not (np.isfinite(first).all() and np.isfinite(second).all()):
        return None
    sums = second - first
    value = float(sums.sum() / counts.sum())
    error = _error(sums - value * counts, counts) or 0.0
    half = student_quantile(len(sums) - 1) * error
    if _is_binary(first, counts) and _is_binary(second, counts):
        p, test = mcnemar(int((sums > 0).sum()), int((sums < 0).sum())), "mcnemar"
    else:
        p, test = _bootstrap(sums, counts, value, seed), "bootstrap"
    return Difference(value, value - half, value + half, p, test)


def mcnemar(gained: int, lost: int) -> float:
    """McNemar's exact test (McNemar 1947; the two-sided binomial form): is a row gained as likely as a row lost?

    Args:
        gained: rows that only the second model has right.
        lost: rows that only the first one has right.

    Returns:
        The p-value: twice the smaller tail of Binomial(gained + lost, 1/2), at most 1.
    """
    total, few = gained + lost, min(gained, lost)
    tail = sum(math.comb(total, k) for k in range(few + 1))
    return float(min(1.0, 2 * tail / 2**total))


def _bootstrap(sums: Floats, counts: Floats, value: float, seed: int) -> float:
    """Two-sided p of a paired bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 16).

    Rows are drawn with replacement; the drawn differences are centered at 0, as they would be for equal models. Resamples of a
    few rows hardly vary, so p is at least that of the exact test of signs if all rows that differ do so in one direction.
    """
    num_different = int(np.count_nonzero(sums))
    if not num_different:
        return 1.0
    rng = np.random.default_rng(seed)
    num_rows = len(sums)
    as_large, drawn, chunk = 0, 0, max(1, _CHUNK // num_rows)
    while drawn < NUM_RESAMPLES:
        size = min(chunk, NUM_RESAMPLES - drawn)
        rows = rng.integers(0, num_rows, (size, num_rows))
        values = sums[rows].sum(1) / counts[rows].sum(1)
        as_large += int((np.abs(values - value) >= abs(value) * (1 - 1e-12)).sum())
        drawn += size
    return max((as_large + 1) / (NUM_RESAMPLES + 1), mcnemar(num_different, 0))


@cache
def student_quantile(degrees: int) -> float:
    """The 97.5 % quantile of Student's t distribution (Abramowitz and Stegun 1964, 26.7.5; exact for 1 and 2, to 0.004 for 3).

    Args:
        degrees: of freedom, at least 1.
    """
    probability = (1 + LEVEL) / 2
    if degrees == 1:
        return math.tan(math.pi * (probability - 0.5))
    if degrees == 2:
        return LEVEL * math.sqrt(2 / (1 - LEVEL**2))
    z = NORMAL_QUANTILE
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(sum(term / degrees**power for power, term in enumerate(terms)))


def _error(residuals: Floats, counts: Floats) -> float | None:
    num_rows = len(residuals)
    if num_rows < 2:
        return None
    variance = float(np.square(residuals).sum()) * num_rows / (num_rows - 1)
    return math.sqrt(variance) / float(counts.sum())


def _is_binary(values: Floats, counts: Floats) -> bool:
    return bool((counts == 1).all() and np.isin(values, (0.0, 1.0)).all())
