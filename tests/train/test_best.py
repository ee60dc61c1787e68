"""Which evaluation is the best, and when patience runs out."""

import json
import math

import pytest

from hub.train.best import Best


def test_nan_and_infinity_are_never_the_best_and_patience_counts_them():
    best = Best(patience=2, min_delta=0.0)
    best.before_training(math.nan)
    json.dumps(best.state(), allow_nan=False)
    values = [math.nan, 2.0, math.inf, 1.5, math.nan, math.nan]
    seen = [(best.observe(step, value), best.num_without) for step, value in enumerate(values, 1)]
    assert seen == [(False, 1), (True, 0), (False, 1), (True, 0), (False, 1), (False, 2)]
    assert (best.step, best.value, best.ends_training) == (4, 1.5, True)


@pytest.mark.parametrize(
    ("patience", "delta", "values", "ends"),
    [
        (2, 0.0, [3.0, 2.0, 2.0, 2.1], [False, False, False, True]),  # equal is not better
        (2, 0.5, [2.9, 2.8], [False, True]),  # small steps do not count, also when they add up
        (2, 0.5, [2.9, 2.4, 2.3, 1.8], [False, False, False, False]),
        (1, 0.0, [3.5], [True]),  # worse than before training
        (None, 0.0, [9.0, 9.0, 9.0], [False, False, False]),
    ],
)
def test_patience_counts_evaluations_that_are_not_better_by_min_delta(patience, delta, values, ends):
    best = Best(patience, delta)
    best.before_training(3.2)
    seen = []
    for step, value in enumerate(values, 1):
        best.observe(step, value)
        seen.append(best.ends_training)
        again = Best(patience, delta)
        again.restore(best.state())
        assert vars(again) == vars(best)
    assert seen == ends
    assert (best.step, best.value) == (values.index(min(values)) + 1, min(values))  # of equal ones the first
