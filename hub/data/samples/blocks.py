"""Documents joined to samples of one length (`data.block_size`)."""

from typing import TypedDict

import numpy as np
import numpy.typing as npt

from hub.data.samples.sample import Sample


class BlocksState(TypedDict):
    """The tokens that fill no block yet. JSON."""

    ids: list[int]
    where: str


class Blocks:
    """Joins documents to samples of one length. Drops nothing: what is left of a document begins the next sample."""

    def __init__(self, size: int) -> None:
        """Args:
        size: tokens of a sample.
        """
        self._size = size
        self._ids, self._where = np.zeros(0, np.int32), ""

    def add(self, sample: Sample) -> list[Sample]:
        """The samples that are full now."""
        self._where = self._where if len(self._ids) else sample.where
        ids = np.concatenate([self._ids, sample.input_ids])
        end = len(ids) // self._size * self._size
        blocks = []
        for start in range(0, end, self._size):
            blocks.append(self._block(ids[start : start + self._size]))
            self._where = sample.where
        self._ids = ids[end:]
        return blocks

    def rest(self) -> list[Sample]:
        """The last sample, which is shorter. None where no tokens are left."""
        ids, self._ids = self._ids, np.zeros(0, np.int32)
        return [self._block(ids)] if len(ids) > 1 else []

    def state(self) -> BlocksState:
        """The tokens that fill no block yet."""
        return {"ids": self._ids.tolist(), "where": self._where}

    def restore(self, state: BlocksState) -> None:
        """Continue from a `state`."""
        self._ids, self._where = np.asarray(state["ids"], np.int32), state["where"]

    def _block(self, ids: npt.NDArray[np.int32]) -> Sample:
        return Sample(ids, np.ones(len(ids), np.bool_), self._where)
