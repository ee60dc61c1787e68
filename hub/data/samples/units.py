"""The units of a run in their order. Those of the token cache stay on disk: memory has 20 bytes of each."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple, overload

import numpy as np
import numpy.typing as npt

from hub.data.samples.sample import Sample, Unit, longest_sample


class MappedFile(NamedTuple):
    """A mapped file as arrays, of which samples are views."""

    ids: npt.NDArray[np.int32]
    masks: npt.NDArray[np.bool_]

    def arrays(self, begin: int, count: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """Token ids and loss mask of a sample.

        Args:
            begin: first byte of its token ids. The mask follows them.
            count: its tokens.
        """
        return self.ids[begin // 4 : begin // 4 + count], self.masks[begin + 4 * count : begin + 5 * count]


@dataclass(slots=True)
class MappedSample(Sample):
    """A sample whose arrays are views of a mapped file."""

    file: MappedFile | None = None
    begin: int = 0
    """First byte of its token ids in the file."""


class _Origin(NamedTuple):
    """What the places of many samples have in common: `chats.jsonl:`, a number, ` part 2`."""

    file: int
    prefix: str
    suffix: str


_NO_LINE = -1
_OBJECT = -1


class Units(Sequence[Unit]):
    """Units in their order. A sample of a mapped file is made anew each time that it is asked for."""

    def __init__(self, units: Iterable[Unit] = ()) -> None:
        """Args:
        units: the first ones.
        """
        self._begins, self._sizes = array("q"), array("i")
        self._lines, self._origins = array("i"), array("i")
        self._known: dict[_Origin, int] = {}
        self._origin_of: list[_Origin] = []
        self._files: list[MappedFile] = []
        self._objects: dict[int, Unit] = {}
        self.num_samples = self.num_tokens = self.longest = 0
        """Of all units. The longest is that of the samples, in tokens."""

        self.extend(units)

    def append(self, unit: Unit) -> None:
        """Add a unit."""
        size = longest = len(unit)
        if isinstance(unit, MappedSample) and unit.file is not None and not unit.role:
            head, line, tail = _split(unit.where)
            self._add(unit.begin, size, line, self._origin(_Origin(self._file(unit.file), head, tail)))
            self.num_samples += 1
        else:
            self._objects[len(self)] = unit
            self._add(0, size, _NO_LINE, _OBJECT)
            self.num_samples += len(unit.samples)
            longest = longest_sample([unit])
        self.num_tokens += size
        self.longest = max(self.longest, longest)

    def extend(self, units: Iterable[Unit]) -> None:
        """Add units."""
        for unit in units:
            self.append(unit)

    def sample_lengths(self) -> "array[int]":
        """Tokens of each sample, in order."""
        if not self._objects:
            return self._sizes[:]
        rows = enumerate(zip(self._sizes, self._origins, strict=True))
        sizes = ((size,) if origin != _OBJECT else map(len, self._objects[number].samples) for number, (size, origin) in rows)
        return array("i", chain.from_iterable(sizes))

    def _add(self, begin: int, size: int, line: int, origin: int) -> None:
        self._begins.append(begin)
        self._sizes.append(size)
        self._lines.append(line)
        self._origins.append(origin)

    def _file(self, file: MappedFile) -> int:
        for number, known in enumerate(self._files):
            if known is file:
                return number
        self._files.append(file)
        return len(self._files) - 1

    def _origin(self, origin: _Origin) -> int:
        number = self._known.setdefault(origin, len(self._origin_of))
        if number == len(self._origin_of):
            self._origin_of.append(origin)
        return number

    def __len__(self) -> int:
        return len(self._begins)

    @overload
    def __getitem__(self, place: int) -> Unit: ...

    @overload
    def __getitem__(self, place: slice) -> list[Unit]: ...

    def __getitem__(self, place: int | slice) -> Unit | list[Unit]:
        if isinstance(place, slice):
            return [self._unit(number) for number in range(*place.indices(len(self)))]
        return self._unit(range(len(self))[place])

    def __iter__(self) -> Iterator[Unit]:
        objects, origins = self._objects, self._origin_of
        rows = zip(self._begins, self._sizes, self._lines, self._origins, strict=True)
        for number, (begin, size, line, origin) in enumerate(rows):
            yield self._sample(begin, size, line, origins[origin]) if origin != _OBJECT else objects[number]

    def _unit(self, number: int) -> Unit:
        origin = self._origins[number]
        if origin == _OBJECT:
            return self._objects[number]
        return self._sample(self._begins[number], self._sizes[number], self._lines[number], self._origin_of[origin])

    def _sample(self, begin: int, size: int, line: int, origin: _Origin) -> MappedSample:
        number, prefix, suffix = origin
        file = self._files[number]
        ids, mask = file.arrays(begin, size)
        return MappedSample(ids, mask, f"{prefix}{line}{suffix}" if line != _NO_LINE else prefix, "", file, begin)


def _split(where: str) -> tuple[str, int, str]:
    """A place such as `chats.jsonl:17 part 2`: what stands before the line, the line, and what stands behind it."""
    head, colon, rest = where.rpartition(":")
    digits, space, tail = rest.partition(" ")
    if colon and digits.isascii() and digits.isdecimal() and len(digits) < 10 and str(int(digits)) == digits:
        return head + colon, int(digits), space + tail
    return where, _NO_LINE, ""
