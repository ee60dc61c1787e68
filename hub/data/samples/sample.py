"""Samples and units: what is trained on, and what counts as one in `effective_batch_size`."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


@dataclass(slots=True)
class Sample:
    """A row of tokens with a loss mask."""

    input_ids: npt.NDArray[np.int32]
    """Token ids, shape (length,)."""

    loss_mask: npt.NDArray[np.bool_]
    """True where the token is a target of the loss, shape (length,)."""

    where: str
    """File and line, as `chats.jsonl:17`."""

    role: str = ""
    """Which sample of its unit it is, as `chosen`. Empty: it is the only one."""

    @property
    def samples(self) -> "tuple[Sample, ...]":
        """The sample itself, so that it can be used as a unit."""
        return (self,)

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.input_ids)


@dataclass(slots=True)
class Group:
    """Several samples that are drawn into a step together: a preference pair, a group of rollouts."""

    samples: tuple[Sample, ...]
    where: str
    """File and line of the row."""

    format: str = ""
    """The data format that gave it. Empty: it does not come from a file."""

    def __len__(self) -> int:
        """Number of tokens of all samples."""
        return sum(map(len, self.samples))


Unit = Sample | Group
"""What counts as one in `effective_batch_size`, and is never torn apart."""


class Item(NamedTuple):
    """What a row gives: a unit, or the reason why it gives none. A row that is split gives several."""

    where: str
    num_tokens: int
    """Tokens of the unit, or of the row that is left out. Of a text far too long to tokenize: a lower bound."""

    unit: Unit | None
    """None: the row is left out."""

    reason: str = ""
    """Why it is left out."""

    bad: bool = False
    """The row can't be used at all, and data.on_bad_row=skip."""

    omitted: tuple[str, ...] = ()
    """What the chat template leaves out of the row: keys of `hub.data.tokens.omissions.KINDS`."""

    num_cut: int = 0
    """Tokens of the row that are cut off behind this unit."""

    format: str = ""
    unused: tuple[str, ...] = ()
    """Fields of the row that nothing reads."""

    longest: int = 0
    """Tokens of the longest sample of a row with several, before it is cut. 0: the row has one sample."""

    @property
    def required_length(self) -> int:
        """The least `data.max_seq_len` that takes a row which is left out because of its length."""
        return self.longest or self.num_tokens


def samples_of(units: Iterable[Unit]) -> list[Sample]:
    """The samples of all units, in their order."""
    return [sample for unit in units for sample in unit.samples]


def counted_as(units: Sequence[Unit]) -> str:
    """What units are to the user: samples, or rows that have several samples each."""
    return "rows" if len(units) and isinstance(units[0], Group) else "samples"


def counted(units: Sequence[Unit]) -> str:
    """How many units there are, as `16 samples`."""
    return f"{len(units)} {counted_as(units)}"


def mask_sum(unit: Unit) -> int:
    """Number of tokens that the loss masks of a unit mark. A sample's first token may be one, though nothing predicts it."""
    return sum(int(sample.loss_mask.sum()) for sample in unit.samples)


def longest_sample(units: Iterable[Unit]) -> int:
    """Tokens of the longest sample. 0: there is none."""
    return max((len(sample) for unit in units for sample in unit.samples), default=0)


def unit_digest(unit: Unit) -> bytes:
    """A hash of the tokens of a unit, to find repetitions."""
    digest = hashlib.blake2b(digest_size=16)
    for sample in unit.samples:
        if isinstance(unit, Group):
            digest.update(_group_header(unit, sample))
        digest.update(sample.input_ids.tobytes())
    return digest.digest()


def fingerprint(units: Iterable[Unit]) -> str:
    """A hash of tokens and masks in order. A run is resumed only on the data that it began with."""
    digest = hashlib.sha256()
    for unit in units:
        for sample in unit.samples:
            if isinstance(unit, Group):
                digest.update(_group_header(unit, sample))
            digest.update(len(sample).to_bytes(8, "little"))
            digest.update(sample.input_ids.tobytes())
            digest.update(sample.loss_mask.tobytes())
    return digest.hexdigest()


def _group_header(group: Group, sample: Sample) -> bytes:
    """What tells a sample of a group from a sample that is a unit of its own: also where the group begins."""
    first = sample is group.samples[0]
    return f"{len(group.samples) if first else 0}/{sample.role}/{len(sample)}\0".encode()


def random_samples(vocab_size: int, lengths: Sequence[int], seed: int) -> list[Sample]:
    """Make samples of random tokens, which all have loss.

    Args:
        vocab_size: tokens are below it.
        lengths: tokens of each sample.
        seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    return [Sample(rng.integers(0, vocab_size, n).astype(np.int32), np.ones(n, dtype=bool), "") for n in lengths]
