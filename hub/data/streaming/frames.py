"""Windows and items as bytes, for a pipe between processes and for the token cache. JSON and arrays: nothing is unpickled.

A frame is the length of its head and that of its arrays (4 bytes each), the head as JSON, and for each sample its token ids
(4 bytes each) and its loss mask (a byte each). All of these are padded to a multiple of 4 bytes, so that arrays can be used
where they were read.
"""

import json
import mmap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from hub.data.samples.sample import Group, Item, Sample, Unit
from hub.data.samples.units import MappedFile, MappedSample
from hub.data.streaming.windows import Window, window_from
from hub.errors import DataError, HubError

_Make = Callable[[int, str, str], Sample]
"""Makes the next sample from its length, role and place."""

_UnitHead = tuple[Sequence[tuple[int, str, str]], tuple[str, str] | None]
"""Length, role and place of each sample, and place and format of a group."""

_ITEMS = b'{"items"'
_to_json = json.JSONEncoder(separators=(",", ":")).encode
Read = Callable[[int], bytes | memoryview]
"""Gives so many bytes, fewer at the end."""


def to_bytes(content: Window | list[Item] | HubError) -> bytes:
    """One frame: a window, the items of a row, or an error."""
    arrays: list[bytes] = []
    head: dict[str, object]
    if isinstance(content, Window):
        head = {"window": content.state()}
    elif isinstance(content, list):
        head = {"items": [(_unit_head(item.unit), *item[:2], *item[3:]) for item in content]}
        arrays = [_arrays(item.unit) for item in content]
    else:
        head = {"error": str(content)}
    text = _to_json(head).encode()
    text += b" " * (-len(text) % 4)
    body = b"".join(arrays)
    return len(text).to_bytes(4, "little") + len(body).to_bytes(4, "little") + text + body


def from_bytes(read: Read) -> Window | list[Item] | None:
    """The next frame.

    Args:
        read: gives so many bytes, fewer at the end.

    Returns:
        None at the end.

    Raises:
        DataError: the frame is an error.
    """
    sizes = read(8)
    if len(sizes) < 8:
        return None
    return _content(read(int.from_bytes(sizes[:4], "little")), _maker(read))


def raw_items(read: Read) -> bytes | Window | None:
    """The next frame: as it is where it has items, so that it can be stored without another look.

    Args:
        read: gives so many bytes, fewer at the end.

    Raises:
        DataError: the frame is an error.
    """
    sizes = bytes(read(8))
    if len(sizes) < 8:
        return None
    head = bytes(read(int.from_bytes(sizes[:4], "little")))
    if head.startswith(_ITEMS):
        return sizes + head + bytes(read(int.from_bytes(sizes[4:], "little")))
    content = _content(head, _maker(read))
    assert isinstance(content, Window)
    return content


def mapped_items(data: mmap.mmap, file: MappedFile) -> Iterator[list[Item]]:
    """The items of each frame of a mapped file. Their arrays are views of it.

    Args:
        data: frames with items only.
        file: the same as arrays.
    """
    place = 0

    def make(count: int, role: str, where: str) -> Sample:
        nonlocal place
        begin, place = place, place + 4 * count + count + -count % 4
        return MappedSample(*file.arrays(begin, count), where, role, file, begin)

    while place < len(data):
        begin = place + 8
        place = begin + int.from_bytes(data[place : place + 4], "little")
        items = _content(data[begin:place], make)
        assert isinstance(items, list)
        yield items


def mapped_file(data: mmap.mmap) -> MappedFile:
    """A file of frames, for `mapped_items`."""
    return MappedFile(np.frombuffer(data, np.int32), np.frombuffer(data, np.bool_))


def _content(head: bytes | memoryview, make: _Make) -> Window | list[Item]:
    values = json.loads(bytes(head))
    if "error" in values:
        raise DataError(values["error"])
    if "window" in values:
        return window_from(values["window"])
    return [_item(item, make) for item in values["items"]]


def _unit_head(unit: Unit | None) -> _UnitHead | None:
    """All of a unit but its arrays."""
    if unit is None:
        return None
    samples = [(len(sample.input_ids), sample.role, sample.where) for sample in unit.samples]
    return samples, (unit.where, unit.format) if isinstance(unit, Group) else None


def _arrays(unit: Unit | None) -> bytes:
    content = b""
    for sample in unit.samples if unit is not None else ():
        mask = sample.loss_mask.tobytes()
        content += sample.input_ids.tobytes() + mask + bytes(-len(mask) % 4)
    return content


def _item(values: list[Any], make: _Make) -> Item:
    head, where, num_tokens, reason, bad, omitted, num_cut, format, unused, longest = values
    unit = _unit(head, make) if head is not None else None
    return Item(where, num_tokens, unit, reason, bad, tuple(omitted), num_cut, format, tuple(unused), longest)


def _unit(head: _UnitHead, make: _Make) -> Unit:
    samples = tuple(make(*sample) for sample in head[0])
    return Group(samples, *head[1]) if head[1] is not None else samples[0]


def _maker(read: Read) -> _Make:
    """Makes samples of what is read."""

    def make(count: int, role: str, where: str) -> Sample:
        ids = np.frombuffer(read(4 * count), np.int32)
        return Sample(ids, np.frombuffer(read(count + -count % 4), np.bool_)[:count], where, role)

    return make


def reader(data: bytes | memoryview) -> Callable[[int], bytes | memoryview]:
    """Gives so many bytes of a buffer at each call, without a copy."""
    view, place = memoryview(data), 0

    def read(size: int) -> memoryview:
        nonlocal place
        place += size
        return view[place - size : place]

    return read
