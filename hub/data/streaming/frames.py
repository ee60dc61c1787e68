"""Windows and items as bytes, for a pipe between processes. JSON and plain arrays: nothing is unpickled.

A frame is the length of its head (4 bytes), the head as JSON, and for each sample its token ids (4 bytes each) and its loss
mask (a byte each). All of these are filled up to a multiple of 4 bytes, so that arrays can lie where they were read.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from hub.data.samples.sample import Item, Sample
from hub.data.sources.read import Cursor
from hub.data.streaming.windows import Window
from hub.errors import DataError, HubError


def to_bytes(found: Window | list[Item] | HubError) -> bytes:
    """One frame: a window, the items of a row, or a mistake."""
    payload = b""
    head: dict[str, Any]
    if isinstance(found, Window):
        head = {"window": asdict(found)}
    elif isinstance(found, list):
        items = []
        for item in found:
            values = item._asdict()
            sample = values.pop("sample")
            values["has_sample"] = sample is not None
            if sample is not None:
                mask = sample.loss_mask.tobytes()
                payload += sample.input_ids.tobytes() + mask + bytes(-len(mask) % 4)
            items.append(values)
        head = {"items": items}
    else:
        head = {"error": str(found)}
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 4)
    return len(text).to_bytes(4, "little") + text + payload


def from_bytes(read: Callable[[int], bytes | memoryview]) -> Window | list[Item] | None:
    """The next frame.

    Args:
        read: gives so many bytes; fewer at the end.

    Returns:
        None at the end.

    Raises:
        DataError: the frame is a mistake.
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


def _item(values: dict[str, Any], read: Callable[[int], bytes | memoryview]) -> Item:
    sample = None
    if values.pop("has_sample"):
        count = values["num_tokens"]
        ids = np.frombuffer(read(4 * count), np.int32)
        mask = np.frombuffer(read(count + -count % 4), np.bool_)[:count]
        sample = Sample(ids, mask, values["where"])
    return Item(sample=sample, **{**values, "unused": tuple(values["unused"])})


def reader(data: bytes | memoryview) -> Callable[[int], bytes | memoryview]:
    """Gives so many bytes of a buffer at each call, without a copy."""
    view, place = memoryview(data), 0

    def read(size: int) -> memoryview:
        nonlocal place
        place += size
        return view[place - size : place]

    return read


def window_from(values: dict[str, Any]) -> Window:
    """A window from its fields, as `asdict` gave them."""
    return Window(**{**values, "cursor": Cursor(**values["cursor"])})
