"""The figures of continual learning, by their usual names.

R[i][k] is the accuracy on task k after task i was learned (both from 0), b[k] that of the model before any training.

    average accuracy    mean over all tasks of R[last][k]
    learned             mean over all tasks of R[k][k]
    backward transfer   mean over all tasks but the last of R[last][k] - R[k][k]
    forward transfer    mean over all tasks but the first of R[k-1][k] - b[k]
    forgetting          mean over all tasks but the last of max over i < last of R[i][k], minus R[last][k]

The transfers are those of Lopez-Paz and Ranzato (arXiv 1706.08840), the forgetting that of Chaudhry et al. (arXiv 1801.10112).
"""

import statistics
from collections.abc import Sequence

Matrix = Sequence[Sequence[float]]


def figures(accuracy: Matrix, before: Sequence[float]) -> dict[str, float]:
    """The figures of one run.

    Args:
        accuracy: R, square: a row after each task, the tasks in the order in which they were learned.
        before: b, in the same order.

    Returns:
        Name -> value. With one task there is no transfer and no forgetting, and these are 0.
    """
    last = len(accuracy) - 1
    others = range(last)
    return {
        "average accuracy": statistics.mean(accuracy[last]),
        "learned": statistics.mean(accuracy[k][k] for k in range(last + 1)),
        "backward transfer": _mean([accuracy[last][k] - accuracy[k][k] for k in others]),
        "forward transfer": _mean([accuracy[k - 1][k] - before[k] for k in range(1, last + 1)]),
        "forgetting": _mean([max(accuracy[i][k] for i in others) - accuracy[last][k] for k in others]),
    }


def _mean(values: Sequence[float]) -> float:
    return statistics.mean(values) if values else 0.0
