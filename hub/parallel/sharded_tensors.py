"""Tensors of a checkpoint on disk: unsharded in one file, or one file of shards per process.

    trainable.safetensors            unsharded tensors
    trainable/rank00000.safetensors  shards; the header has the offsets of each in its tensor

The folder has the format of torch's distributed checkpoints in safetensors (arXiv 2304.11277 describes the sharding):
`torch.distributed.checkpoint.HuggingFaceStorageReader` reads it. Torch's writer is not used. Its ranks plan each save by
exchanging pickles: a thread beside training must not communicate, and the hub reads no pickles. Any number of processes
can read either form, and each reads only its own shard.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor, Replicate, Shard

from hub.errors import ModelError

SHARDING = "DCP_SHARDING_INFO"
"""Key in a file's header under which torch's distributed checkpoints store the offsets of shards."""


class Region(NamedTuple):
    """A rectangular part of a tensor: its offset and its length in each dimension."""

    offsets: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def end(self) -> tuple[int, ...]:
        return tuple(offset + length for offset, length in zip(self.offsets, self.shape, strict=True))

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def local_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """This process's shard of a tensor, or an unsharded tensor itself. Detached; shares memory with it."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_region(tensor: torch.Tensor) -> Region:
    """The region of the full tensor that `local_tensor` returns."""
    if not isinstance(tensor, DTensor):
        return Region((0,) * tensor.ndim, tuple(tensor.shape))
    if tensor.device_mesh.ndim != 1:
        raise ModelError(f"checkpoints can't store tensors sharded over a mesh of {tensor.device_mesh.ndim} dimensions")
    shape, offsets = list(local_tensor(tensor).shape), [0] * tensor.ndim
    (placement,) = tensor.placements
    if isinstance(placement, Shard):
        length = tensor.shape[placement.dim]
        # Same as torch.chunk: the last shards may be smaller, or empty.
        chunk = -(-length // tensor.device_mesh.size())
        offsets[placement.dim] = min(length, tensor.device_mesh.get_local_rank() * chunk)
    elif not isinstance(placement, Replicate):
        raise ModelError(f"checkpoints can't store a tensor with the placement {placement}")
    return Region(tuple(offsets), tuple(shape))


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether each process holds only a shard of the tensor."""
    return isinstance(tensor, DTensor) and any(isinstance(placement, Shard) for placement in tensor.placements)


def sharded_like(parameter: torch.Tensor, shard: torch.Tensor) -> torch.Tensor:
    """A tensor sharded as a parameter is, built from this process's shard. No communication."""
    if not isinstance(parameter, DTensor):
        return shard
    device = parameter.device_mesh.device_type
    return DTensor.from_local(
        shard.to(device), parameter.device_mesh, parameter.placements, run_check=False, shape=parameter.shape,
        stride=parameter.stride(),
    )  # fmt: skip


def write_shards(file: Path, tensors: Mapping[str, torch.Tensor], offsets: Mapping[str, Sequence[int]]) -> None:
    """Write one process's shards. Empty shards are left out."""
    shards = {name: tensor for name, tensor in tensors.items() if tensor.numel()}
    header = {name: {"saved_offsets": list(offsets[name])} for name in shards}
    save_file(shards, file, metadata={"format": "pt", SHARDING: json.dumps(header)})


class StoredTensors:
    """Tensors that a checkpoint stores under one name (`trainable`, `optimizer`), unsharded or as shards.

    Raises:
        ModelError: a file is not a safetensors file, or shards are missing.
    """

    def __init__(self, checkpoint: Path, part: str) -> None:
        unsharded = checkpoint / f"{part}.safetensors"
        files = [unsharded] if unsharded.is_file() else sorted((checkpoint / part).glob("*.safetensors"))
        if not files:
            raise ModelError(f"{checkpoint} has no {part}.safetensors")
        self._shards: dict[str, list[tuple[Region, safe_open]]] = {}
        for file in files:
            self._add(file)
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Shape of each full tensor."""
        for name, shards in self._shards.items():
            ends = [region.end for region, _ in shards]
            self.shapes[name] = tuple(max(dimension) for dimension in zip(*ends, strict=True))
            if sum(region.size for region, _ in shards) != math.prod(self.shapes[name]):
                raise ModelError(f"{checkpoint}: shards of {name} are missing in {part}/")

    @classmethod
    def none(cls) -> "StoredTensors":
        """No tensors at all, as of an optimizer that has made no step."""
        stored = cls.__new__(cls)
        stored._shards, stored.shapes = {}, {}
        return stored

    def _add(self, file: Path) -> None:
        """Open a file and note the regions of its tensors."""
        try:
            opened = safe_open(file, framework="pt")
            header = json.loads((opened.metadata() or {}).get(SHARDING, "{}"))
            for name in opened.keys():  # noqa: SIM118 - not a dictionary
                shape = tuple(opened.get_slice(name).get_shape())
                offsets = tuple(header[name]["saved_offsets"]) if header else (0,) * len(shape)
                self._shards.setdefault(name, []).append((Region(offsets, shape), opened))
        except SafetensorError as error:
            raise ModelError(f"{file} is not a safetensors file, and no other format is read ({error})") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{file} has no readable offsets of its shards ({error!r})") from None

    def read(self, name: str, wanted: Region | None = None) -> torch.Tensor:
        """A tensor, or one region of it. On the CPU."""
        shards = self._shards[name]
        if wanted is None or wanted.shape == self.shapes[name]:
            wanted = Region((0,) * len(self.shapes[name]), self.shapes[name])
            if len(shards) == 1:
                full: torch.Tensor = shards[0][1].get_tensor(name)
                return full
        result: torch.Tensor | None = None
        for region, opened in shards:
            begin = [max(pair) for pair in zip(region.offsets, wanted.offsets, strict=True)]
            end = [min(pair) for pair in zip(region.end, wanted.end, strict=True)]
            if any(b >= e for b, e in zip(begin, end, strict=True)):
                continue
            piece: torch.Tensor = opened.get_slice(name)[_slices(begin, end, region.offsets)]
            if result is None:
                result = piece.new_empty(wanted.shape)
            result[_slices(begin, end, wanted.offsets)] = piece
        if result is not None:
            return result
        # An empty region: only the dtype matters.
        sample: torch.Tensor = shards[0][1].get_slice(name)[:1]
        return sample.new_empty(wanted.shape)


def _slices(begin: Sequence[int], end: Sequence[int], origin: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(b - o, e - o) for b, e, o in zip(begin, end, origin, strict=True))
