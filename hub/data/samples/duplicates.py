"""Exact duplicates among the units of a run, found by their tokens."""

from collections.abc import Sequence
from typing import NamedTuple

from hub.data.samples.sample import Unit, unit_digest

MAX_DUPLICATES = 0.01
"""Share of duplicates in the training data above which a run reports them before training."""


class Duplicates(NamedTuple):
    """Where exact duplicates are."""

    repeated: list[str]
    """Training units that repeat an earlier one."""

    leaked: list[str]
    """Units of the evaluation set that are in the training data, too."""

    def lines(self, num_train: int, num_evaluation: int) -> list[str]:
        """What to tell the user.

        Args:
            num_train: number of training units.
            num_evaluation: number of units in the evaluation set.
        """
        lines = []
        more = "To see more, type python -m hub data with the same options"
        if len(self.repeated) > MAX_DUPLICATES * num_train:
            lines.append(
                f"Note: {len(self.repeated):,} of {num_train:,} training samples are exact copies of another one "
                f"({self.repeated[0]}, ...). {more}."
            )
        if self.leaked:
            lines.append(
                f"Warning: {len(self.leaked):,} of {num_evaluation:,} samples of the evaluation set are in the training data, "
                f"too ({self.leaked[0]}, ...), so the evaluation loss will look better than it is. {more}."
            )
        return lines


def find_duplicates(train: Sequence[Unit], evaluation: Sequence[Unit]) -> Duplicates:
    """The units that have the same tokens as another one. Of a unit with several samples all must be the same."""
    seen: set[bytes] = set()
    repeated = []
    for unit in train:
        digest = unit_digest(unit)
        if digest in seen:
            repeated.append(unit.where)
        seen.add(digest)
    return Duplicates(repeated, [unit.where for unit in evaluation if unit_digest(unit) in seen])
