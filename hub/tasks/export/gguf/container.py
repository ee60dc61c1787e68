"""The container format of GGUF files: metadata as it stands in the file, and where each tensor lies.

Metadata is kept as bytes, so that a file written from another has the same metadata bit for bit. The format is described in
ggml's docs/gguf.md. Only little-endian files of version 2 and 3 are read.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from hub.errors import ModelError
from hub.tasks.export.gguf.kinds import BLOCKS, TensorType

ALIGNMENT = 32
"""Bytes to which the data of each tensor is aligned, if the file names no other number."""

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_UINT32, _FLOAT32, _BOOLEAN, _STRING, _ARRAY = 4, 6, 7, 8, 9


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file."""

    name: str
    shape: tuple[int, ...]
    """ggml's order: the length of a row first, the number of experts last."""

    type: TensorType
    offset: int = 0
    """Bytes from the beginning of the data."""

    @property
    def row(self) -> int:
        """Weights in a row: the input channels."""
        return self.shape[0]

    @property
    def num_rows(self) -> int:
        """Rows of all matrices of the tensor."""
        rows = 1
        for size in self.shape[1:]:
            rows *= size
        return rows

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        weights, size = BLOCKS[self.type]
        return self.row // weights * size

    @property
    def num_bytes(self) -> int:
        """Bytes of its data, without padding."""
        return self.row_bytes * self.num_rows


@dataclass(frozen=True)
class Container:
    """All of a GGUF file but the data of its tensors."""

    metadata: dict[str, bytes]
    """By key, in the order of the file: the number of the type and the value, as bytes."""

    tensors: tuple[Tensor, ...]
    data_start: int
    """Bytes before the data of the first tensor."""

    def value(self, key: str, default: Any = None) -> Any:
        """A value of the metadata: number, string, or list of these."""
        raw = self.metadata.get(key)
        return default if raw is None else _decode(raw)

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture, such as `llama`."""
        return str(self.value("general.architecture", ""))

    @property
    def alignment(self) -> int:
        """Bytes to which the data of each tensor is aligned."""
        return int(self.value("general.alignment", ALIGNMENT))


def read_container(file: Path) -> Container:
    """Read metadata and the list of tensors of a GGUF file.

    Raises:
        ModelError: it is none, is cut off, or has a type of tensors that is not known.
    """
    try:
        with file.open("rb") as stream:
            return _read(stream, file.stat().st_size)
    except (struct.error, ValueError, KeyError, UnicodeDecodeError, EOFError) as error:
        raise ModelError(f"{file} is no whole GGUF file ({error or type(error).__name__}). Export it again") from None


def _read(stream: BinaryIO, size: int) -> Container:
    magic, version = stream.read(4), _number(stream, "<I")
    if magic != b"GGUF" or version not in (2, 3):
        raise ValueError(f"it begins with {magic!r}, version {version}")
    num_tensors, num_values = _number(stream, "<Q"), _number(stream, "<Q")
    metadata = {}
    for _ in range(num_values):
        key = _text(stream)
        start = stream.tell()
        _skip(stream, _number(stream, "<I"))
        end = stream.tell()
        stream.seek(start)
        metadata[key] = stream.read(end - start)
    tensors = []
    for _ in range(num_tensors):
        name, num_dims = _text(stream), _number(stream, "<I")
        shape = struct.unpack(f"<{num_dims}Q", stream.read(8 * num_dims))
        tensors.append(Tensor(name, shape, TensorType(_number(stream, "<I")), _number(stream, "<Q")))
    end = stream.tell()
    alignment = Container(metadata, (), 0).alignment
    made = Container(metadata, tuple(tensors), end + -end % alignment)
    needed = max((tensor.offset + tensor.num_bytes for tensor in tensors), default=0)
    if size < made.data_start + needed:
        raise ValueError(f"{size} bytes, and its tensors need {made.data_start + needed}")
    return made


def pack_container(metadata: dict[str, bytes], tensors: Iterable[Tensor], alignment: int) -> bytes:
    """The beginning of a GGUF file up to the data, padded. Offsets of the tensors are counted anew."""
    listed = list(tensors)
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(listed), len(metadata))]
    for key, raw in metadata.items():
        parts += [_packed(key), raw]
    offset = 0
    for tensor in listed:
        shape = tensor.shape
        parts += [_packed(tensor.name), struct.pack(f"<I{len(shape)}Q", len(shape), *shape)]
        parts.append(struct.pack("<IQ", tensor.type, offset))
        offset += tensor.num_bytes + -tensor.num_bytes % alignment
    packed = b"".join(parts)
    return packed + bytes(-len(packed) % alignment)


def uint32(value: int) -> bytes:
    """A value of the metadata, as bytes."""
    return struct.pack("<II", _UINT32, value)


def float32(value: float) -> bytes:
    """A value of the metadata, as bytes."""
    return struct.pack("<If", _FLOAT32, value)


def boolean(value: bool) -> bytes:
    """A value of the metadata, as bytes."""
    return struct.pack("<I?", _BOOLEAN, value)


def _packed(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _number(stream: BinaryIO, form: str) -> Any:
    raw = stream.read(struct.calcsize(form))
    return struct.unpack(form, raw)[0]


def _text(stream: BinaryIO) -> str:
    length = _number(stream, "<Q")
    raw = stream.read(length)
    if len(raw) < length:
        raise EOFError("it is cut off")
    return raw.decode()


def _skip(stream: BinaryIO, kind: int) -> None:
    if kind == _STRING:
        stream.seek(_number(stream, "<Q"), 1)
    elif kind == _ARRAY:
        inner, length = _number(stream, "<I"), _number(stream, "<Q")
        if inner in _SCALARS:
            stream.seek(length * struct.calcsize(_SCALARS[inner]), 1)
        else:
            for _ in range(length):
                _skip(stream, inner)
    else:
        stream.seek(struct.calcsize(_SCALARS[kind]), 1)


def _decode(raw: bytes) -> Any:
    value, _ = _decode_at(raw, 4, struct.unpack_from("<I", raw)[0])
    return value


def _decode_at(raw: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind == _STRING:
        (length,) = struct.unpack_from("<Q", raw, at)
        return raw[at + 8 : at + 8 + length].decode("utf-8", "replace"), at + 8 + length
    if kind == _ARRAY:
        inner, length = struct.unpack_from("<IQ", raw, at)
        at += 12
        values = []
        for _ in range(length):
            value, at = _decode_at(raw, at, inner)
            values.append(value)
        return values, at
    form = _SCALARS[kind]
    return struct.unpack_from(form, raw, at)[0], at + struct.calcsize(form)
