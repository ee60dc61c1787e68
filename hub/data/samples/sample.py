"""A sample: one text as token ids with a loss mask."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


@dataclass(slots=True)
class Sample:
    """What is trained on as one text."""

    input_ids: npt.NDArray[np.int32]
    """Token ids, shape (length,)."""

    loss_mask: npt.NDArray[np.bool_]
    """True where the token is a target of the loss, shape (length,)."""

    where: str
    """`chats.jsonl:17`."""

    role: str = ""
    """What it is in a unit of several samples, such as `chosen`. Empty for a unit of one."""

    @property
    def samples(self) -> "tuple[Sample, ...]":
        """Itself: a sample is a unit of one."""
        return (self,)

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.input_ids)


@dataclass(slots=True)
class Group:
    """A unit of several samples, such as a preference pair. It counts as one in `effective_batch_size`."""

    samples: tuple[Sample, ...]
    where: str
    """`pairs.jsonl:17`."""

    def __len__(self) -> int:
        """Number of tokens of all its samples."""
        return sum(map(len, self.samples))


Unit = Sample | Group
"""What counts as one in `effective_batch_size` and is drawn whole into a step."""


class Item(NamedTuple):
    """A sample, or a row or part of one that is left out."""

    where: str
    num_tokens: int
    """Of the sample, or of the row that is left out; at least that many of one that is far too long."""

    sample: Sample | None
    """None: it is left out."""

    reason: str = ""
    """Why it is left out."""

    bad: bool = False
    """It can't be used at all, and data.on_bad_row=skip."""

    omitted: bool = False
    """Whether the chat template leaves out a text beside tool calls."""

    num_cut: int = 0
    """Tokens of the row that are cut off behind this sample."""

    format: str = ""
    unused: tuple[str, ...] = ()
    """Fields of the row that nothing reads."""


def fingerprint(samples: Sequence[Sample]) -> str:
    """A hash of the samples' tokens and masks, in order: whether a run is resumed on the data that it began with."""
    found = hashlib.sha256()
    for sample in samples:
        found.update(len(sample).to_bytes(8, "little"))
        found.update(sample.input_ids.tobytes())
        found.update(sample.loss_mask.tobytes())
    return found.hexdigest()
