import numpy as np
import pytest

from hub.tasks.evaluate.statistics import compare, mcnemar, ratio, student_quantile


def test_student_quantiles_are_those_of_tables():
    # Two-sided 5 %, from any table of the t distribution.
    for degrees, expected in {1: 12.7062, 2: 4.3027, 3: 3.1824, 5: 2.5706, 10: 2.2281, 30: 2.0423, 1000: 1.9623}.items():
        assert student_quantile(degrees) == pytest.approx(expected, abs=5e-3)


def test_mcnemar_is_the_exact_binomial_test():
    # scipy.stats.binomtest(2, 12, 0.5).pvalue and others.
    assert mcnemar(10, 2) == pytest.approx(0.038574, abs=1e-6)
    assert mcnemar(2, 10) == mcnemar(10, 2)
    assert mcnemar(0, 5) == pytest.approx(0.0625)
    assert mcnemar(0, 0) == mcnemar(4, 4) == 1.0


def test_a_mean_and_a_ratio_have_their_standard_errors():
    values = np.array([1.0, 2.0, 4.0, 9.0])
    mean, error = ratio(values, np.ones(4))
    assert mean == 4.0
    assert error == pytest.approx(values.std(ddof=1) / 2)
    # By hand: 10 nats over 10 tokens, residuals 1 - 2, 2 - 3, 7 - 5.
    value, error = ratio(np.array([1.0, 2.0, 7.0]), np.array([2.0, 3.0, 5.0]))
    assert value == 1.0
    assert error == pytest.approx((6 * 3 / 2) ** 0.5 / 10)
    assert ratio(np.array([3.0]), np.array([2.0])) == (1.5, None)


def test_intervals_hold_the_true_value_as_often_as_they_say():
    rng, held, covered, rejected = np.random.default_rng(0), 0, 0, 0
    trials, true, change = 300, 2.0, 0.1
    for trial in range(trials):
        # Rows of unlike lengths, whose tokens share a difficulty: independent tokens would give far too small errors.
        counts = rng.integers(5, 60, 80).astype(float)
        difficulty = rng.normal(true, 0.5, 80)
        first = counts * (difficulty + rng.normal(0, 0.1, 80))
        second = counts * (difficulty + change + rng.normal(0, 0.1, 80))
        value, error = ratio(first, counts)
        held += abs(value - true) <= student_quantile(79) * error
        if trial < 40:
            difference = compare(first, second, counts, trial)
            covered += difference.low <= change <= difference.high
            equal = compare(first, counts * (difficulty + rng.normal(0, 0.1, 80)), counts, trial)
            rejected += equal.p < 0.05
    assert 0.91 <= held / trials <= 0.98
    assert 35 <= covered <= 40
    assert rejected <= 6


def test_zeros_and_ones_are_tested_with_mcnemar_and_other_figures_with_a_bootstrap():
    first, second = np.zeros(12), np.array([1.0] * 10 + [0.0] * 2)
    found = compare(first, second, np.ones(12), 0)
    assert (found.test, found.value) == ("mcnemar", 10 / 12)
    assert found.p == mcnemar(10, 0)
    assert found.low < found.value < found.high
    other = compare(first, second * 0.5, np.ones(12), 0)
    assert other.test == "bootstrap"
    assert other.p < 0.01
    few = compare(np.zeros(3), np.array([0.4, 0.5, 0.6]), np.ones(3), 0)
    assert few.p == mcnemar(3, 0) == 0.25
    assert compare(first, first, np.ones(12), 0).p == 1.0
    assert compare(first[:1], first[:1], np.ones(1), 0) is None
