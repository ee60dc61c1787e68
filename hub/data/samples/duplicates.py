"""Exact duplicates among the units of a run, found by their tokens."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hub.data.samples.sample import Unit, unit_digest

MAX_DUPLICATES = 0.01
"""Share of duplicates in the training data above which a run reports them before training."""


_DIGEST = np.dtype("S16")


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
    """The units that have the same tokens as another one. Of a unit with several samples all must be the same.

    Their hashes are packed and sorted: memory has 16 bytes of each, and only while they are compared.
    """
    digests = bytearray()
    for unit in train:
        digests += unit_digest(unit)
    packed = np.frombuffer(digests, _DIGEST)
    packed.sort()
    copied = set(packed[1:][packed[1:] == packed[:-1]].tolist())
    repeated, seen = [], set()
    for unit in train if copied else ():
        digest = _stripped(unit_digest(unit))
        if digest in seen:
            repeated.append(unit.where)
        elif digest in copied:
            seen.add(digest)
    return Duplicates(repeated, [unit.where for unit in evaluation if _has(packed, unit_digest(unit))])


def _stripped(digest: bytes) -> bytes:
    """A hash as NumPy gives it: without zeros at its end."""
    return digest.rstrip(b"\0")


def _has(packed: npt.NDArray[np.bytes_], digest: bytes) -> bool:
    place = int(packed.searchsorted(np.array(digest, _DIGEST)))
    return place < len(packed) and packed[place] == _stripped(digest)
