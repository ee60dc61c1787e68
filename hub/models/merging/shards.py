"""Safetensors files, read and written one tensor at a time, so that memory holds one tensor and never a file.

The format: https://huggingface.co/docs/safetensors/index#format. Eight bytes with the length of the header (little-endian), the
header in JSON, the bytes of the tensors. As the header has the names, shapes and places of all tensors, it can be written
before the first of them exists.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open

from hub.errors import ModelError
from hub.models.loading_report import stored_tensors, weight_files
from hub.system.space import check_space, free_space, is_full, too_full

LARGEST_SHARD = 4 * 10**9
"""Bytes of tensors in a file. Larger tensors have a file of their own."""

INDEX = "model.safetensors.index.json"
_ALIGNMENT = 8
_WHAT = "the merged model"
_WRITTEN_AT_ONCE = 2**26
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class _Place:
    """Where a tensor is."""

    file: Path
    start: int
    num_bytes: int


class StoredFiles:
    """The tensors of a folder of safetensors."""

    def __init__(self, folder: Path) -> None:
        """Read the headers.

        Args:
            folder: with the weights of a model.

        Raises:
            ModelError: a file can't be read.
        """
        try:
            self.tensors = stored_tensors(folder)  # it checks the headers, too
            self._places = {name: place for file in weight_files(folder) for name, place in _places(file)}
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise ModelError(f"{folder}: its weights can't be read ({error}). Copy or download them again") from None

    def read(self, name: str, part: slice | None = None) -> torch.Tensor:
        """A tensor, or a part of its first dimension. It is a copy: a file that is mapped into memory would stay there.

        Args:
            name: as in the files.
            part: first and last index of the part. None: all of it.
        """
        like, place = self.tensors[name], self._places[name]
        first, last = (0, len(like)) if part is not None and like.ndim else (0, 1)
        if part is not None and like.ndim:
            first, last, _ = part.indices(len(like))
        per_row = place.num_bytes // len(like) if like.ndim and part is not None and len(like) else place.num_bytes
        data = bytearray((last - first) * per_row)
        with open(place.file, "rb", buffering=0) as file:
            file.seek(place.start + first * per_row)
            _fill(file, data)
        shape = (last - first, *like.shape[1:]) if part is not None and like.ndim else like.shape
        if not data:
            return torch.empty(shape, dtype=like.dtype)
        return torch.frombuffer(data, dtype=like.dtype).view(shape)


def _places(file: Path) -> Iterator[tuple[str, _Place]]:
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    for name, values in header.items():
        if name != "__metadata__":
            start, end = values["data_offsets"]
            yield name, _Place(file, 8 + length + start, end - start)


def _fill(file: IO[bytes], data: bytearray) -> None:
    view, done = memoryview(data), 0
    while done < len(data):
        count = file.readinto(view[done:])  # type: ignore[attr-defined]  # a raw file has it
        if not count:
            raise ModelError(f"{file.name}: it ends too soon. Copy or download it again")
        done += count


@dataclass(frozen=True)
class Planned:
    """A tensor that will be written."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Size in the file."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def check_room(plan: Mapping[str, Planned], beside: int, folder: Path) -> None:
    """Check that the disk has room for a model.

    Args:
        plan: the tensors.
        beside: bytes of all other files.
        folder: where it will be. It need not exist.

    Raises:
        ConfigError: there is too little.
    """
    check_space(folder, _WHAT, sum(tensor.num_bytes for tensor in plan.values()) + beside)


def write_shards(folder: Path, plan: Mapping[str, Planned], tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Write tensors as they come, into `model.safetensors`, or into several files and an index of them.

    Args:
        folder: receives the files.
        plan: name -> what it will be, in the order of `tensors`.
        tensors: exactly those of the plan.

    Raises:
        ConfigError: the disk is full.
        ModelError: a tensor is not as planned.
    """
    shards = _split(plan)
    names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = ["model.safetensors"]
    coming = iter(tensors)
    try:
        for name, shard in zip(names, shards, strict=True):
            _write_one(folder / name, shard, coming)
    except OSError as error:
        if not is_full(error):
            raise
        needed, free = sum(tensor.num_bytes for tensor in plan.values()), free_space(folder)
        written = sum((folder / name).stat().st_size for name in names if (folder / name).exists())
        raise too_full(folder.parent, _WHAT, needed, free + written) from None
    if len(shards) > 1:
        where = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        total = sum(tensor.num_bytes for tensor in plan.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _split(plan: Mapping[str, Planned]) -> list[dict[str, Planned]]:
    shards: list[dict[str, Planned]] = [{}]
    size = 0
    for name, tensor in plan.items():
        if shards[-1] and size + tensor.num_bytes > LARGEST_SHARD:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.num_bytes
    return shards


def _write_one(file: Path, shard: Mapping[str, Planned], tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, planned in shard.items():
        end = start + planned.num_bytes
        header[name] = {"dtype": _NAMES[planned.dtype], "shape": list(planned.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with open(file, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name, planned in shard.items():
            found, tensor = next(tensors)
            if found != name or tensor.dtype != planned.dtype or tuple(tensor.shape) != planned.shape:
                raise ModelError(
                    f"{found} became {tensor.dtype} {list(tensor.shape)}, and {name} was to be {planned.dtype} "
                    f"{list(planned.shape)}. Nothing was written"
                )
            _write_tensor(out, tensor)
        out.flush()
        os.fsync(out.fileno())
    with safe_open(file, framework="pt"):
        pass  # it checks the header


def _write_tensor(out: IO[bytes], tensor: torch.Tensor) -> None:
    numbers: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()  # its type does not say that it is a buffer
    data = memoryview(numbers) if tensor.numel() else memoryview(b"")
    for start in range(0, len(data), _WRITTEN_AT_ONCE):
        out.write(data[start : start + _WRITTEN_AT_ONCE])
