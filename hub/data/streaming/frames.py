"""Windows and items as bytes, for a pipe between processes and for the token cache. JSON and arrays: nothing is unpickled.

A frame is the length of its head (4 bytes), the head as JSON, and for each sample its token ids (4 bytes each) and its loss
mask (a byte each). All of these are padded to a multiple of 4 bytes, so that arrays can be used where they were read.
"""

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from hub.data.samples.sample import Group, Item, Sample, Unit
from hub.data.streaming.windows import Window, window_from
from hub.errors import DataError, HubError

Read = Callable[[int], bytes | memoryview]
"""Gives so many bytes, fewer at the end."""


def to_bytes(content: Window | list[Item] | HubError) -> bytes:
    """One frame: a window, the items of a row, or an error."""
    arrays: list[bytes] = []
    head: dict[str, object]
    if isinstance(content, Window):
        head = {"window": content.state()}
    elif isinstance(content, list):
        head = {"items": [item._asdict() | {"unit": _unit_head(item.unit)} for item in content]}
        arrays = [_arrays(item.unit) for item in content]
    else:
        head = {"error": str(content)}
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 4)
    return len(text).to_bytes(4, "little") + text + b"".join(arrays)


def from_bytes(read: Read) -> Window | list[Item] | None:
    """The next frame.

    Args:
        read: gives so many bytes, fewer at the end.

    Returns:
        None at the end.

    Raises:
        DataError: the frame is an error.
    """
    size = read(4)
    if len(size) < 4:
        return None
    head = json.loads(bytes(read(int.from_bytes(size, "little"))))
    if "error" in head:
        raise DataError(head["error"])
    if "window" in head:
        return window_from(head["window"])
    return [_item(values, read) for values in head["items"]]


def _unit_head(unit: Unit | None) -> dict[str, object] | None:
    """All of a unit but its arrays."""
    if unit is None:
        return None
    samples = [[len(sample), sample.role, sample.where] for sample in unit.samples]
    return {"samples": samples, "group": [unit.where, unit.format] if isinstance(unit, Group) else None}


def _arrays(unit: Unit | None) -> bytes:
    content = b""
    for sample in unit.samples if unit is not None else ():
        mask = sample.loss_mask.tobytes()
        content += sample.input_ids.tobytes() + mask + bytes(-len(mask) % 4)
    return content


def _item(values: dict[str, Any], read: Read) -> Item:
    head = values["unit"]
    unit = _unit(head, read) if head is not None else None
    return Item(**{**values, "unit": unit, "unused": tuple(values["unused"]), "omitted": tuple(values["omitted"])})


def _unit(head: dict[str, Any], read: Read) -> Unit:
    samples = tuple(_sample(read, *values) for values in head["samples"])
    if head["group"] is None:
        return samples[0]
    where, format = head["group"]
    return Group(samples, where, format)


def _sample(read: Read, count: int, role: str, where: str) -> Sample:
    ids = np.frombuffer(read(4 * count), np.int32)
    mask = np.frombuffer(read(count + -count % 4), np.bool_)[:count]
    return Sample(ids, mask, where, role)


def reader(data: bytes | memoryview) -> Callable[[int], bytes | memoryview]:
    """Gives so many bytes of a buffer at each call, without a copy."""
    view, place = memoryview(data), 0

    def read(size: int) -> memoryview:
        nonlocal place
        place += size
        return view[place - size : place]

    return read
