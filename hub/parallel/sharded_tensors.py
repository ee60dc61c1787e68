"""Tensors of a checkpoint on the disk: whole in one file, or in a file per process that holds that process's shares.

    trainable.safetensors            the whole tensors
    trainable/rank00000.safetensors  shares; the header says where in its tensor each of them begins

A folder of shares is what torch's distributed checkpoints in safetensors are (arXiv 2304.11277 has the sharding):
`torch.distributed.checkpoint.HuggingFaceStorageReader` reads it. Torch's writer is not used, since its ranks plan each save
by sending each other pickles, which no thread beside the training may do and which the hub does not read. Any number of
processes reads either form, each only what it holds.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor, Replicate, Shard

from hub.errors import ModelError

SHARDING = "DCP_SHARDING_INFO"
"""Key in a file's header under which torch's distributed checkpoints tell where the shares begin."""


class Place(NamedTuple):
    """A box in a tensor: where it begins, and its size, in each dimension."""

    offsets: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def end(self) -> tuple[int, ...]:
        return tuple(offset + length for offset, length in zip(self.offsets, self.shape, strict=True))

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor, without its gradient's history. Shares memory with it."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def place_of(tensor: torch.Tensor) -> Place:
    """Where in the whole tensor that lies."""
    if not isinstance(tensor, DTensor):
        return Place((0,) * tensor.ndim, tuple(tensor.shape))
    if tensor.device_mesh.ndim != 1:
        raise ModelError(f"a checkpoint has no form for tensors shared out over a mesh of {tensor.device_mesh.ndim} dimensions")
    shape, offsets = list(local(tensor).shape), [0] * tensor.ndim
    (placement,) = tensor.placements
    if isinstance(placement, Shard):
        whole = tensor.shape[placement.dim]
        # As torch.chunk cuts: the last shares may be smaller, or empty.
        chunk = -(-whole // tensor.device_mesh.size())
        offsets[placement.dim] = min(whole, tensor.device_mesh.get_local_rank() * chunk)
    elif not isinstance(placement, Replicate):
        raise ModelError(f"a checkpoint has no form for a tensor shared out as {placement}")
    return Place(tuple(offsets), tuple(shape))


def is_share(tensor: torch.Tensor) -> bool:
    """Whether each process holds a part of its own."""
    return isinstance(tensor, DTensor) and any(isinstance(placement, Shard) for placement in tensor.placements)


def shared_like(parameter: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """This process's share of a tensor, as part of one that is shared out as a parameter is. Sends nothing."""
    if not isinstance(parameter, DTensor):
        return share
    device = parameter.device_mesh.device_type
    return DTensor.from_local(
        share.to(device), parameter.device_mesh, parameter.placements, run_check=False, shape=parameter.shape,
        stride=parameter.stride(),
    )  # fmt: skip


def write_shares(file: Path, tensors: Mapping[str, torch.Tensor], offsets: Mapping[str, Sequence[int]]) -> None:
    """Write one process's shares. Empty ones are left out."""
    kept = {name: tensor for name, tensor in tensors.items() if tensor.numel()}
    places = {name: {"saved_offsets": list(offsets[name])} for name in kept}
    save_file(kept, file, metadata={"format": "pt", SHARDING: json.dumps(places)})


class StoredTensors:
    """Tensors that a checkpoint holds under a name (`trainable`, `optimizer`), whole or in shares.

    Raises:
        ModelError: a file is no safetensors file, or shares are missing.
    """

    def __init__(self, checkpoint: Path, part: str) -> None:
        whole = checkpoint / f"{part}.safetensors"
        files = [whole] if whole.is_file() else sorted((checkpoint / part).glob("*.safetensors"))
        if not files:
            raise ModelError(f"{checkpoint} has no {part}.safetensors")
        self._found: dict[str, list[tuple[Place, Any]]] = {}
        for file in files:
            try:
                opened = safe_open(file, framework="pt")
                starts = json.loads((opened.metadata() or {}).get(SHARDING, "{}"))
                for name in opened.keys():  # noqa: SIM118 - no dictionary
                    shape = tuple(opened.get_slice(name).get_shape())
                    offsets = tuple(starts[name]["saved_offsets"]) if starts else (0,) * len(shape)
                    self._found.setdefault(name, []).append((Place(offsets, shape), opened))
            except SafetensorError as error:
                raise ModelError(f"{file} is no safetensors file, and no other kind is read ({error})") from None
            except (ValueError, KeyError, TypeError) as error:
                raise ModelError(f"{file} does not say where its shares begin ({error!r})") from None
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Shape of each whole tensor."""
        for name, parts in self._found.items():
            ends = [place.end for place, _ in parts]
            self.shapes[name] = tuple(max(dimension) for dimension in zip(*ends, strict=True))
            if sum(place.size for place, _ in parts) != math.prod(self.shapes[name]):
                raise ModelError(f"{checkpoint}: shares of {name} are missing in {part}/")

    def read(self, name: str, wanted: Place | None = None) -> torch.Tensor:
        """A tensor, or the part of it that lies in a place; on the CPU."""
        if wanted is None or wanted.shape == self.shapes[name]:
            wanted = Place((0,) * len(self.shapes[name]), self.shapes[name])
            if len(self._found[name]) == 1:
                whole: torch.Tensor = self._found[name][0][1].get_tensor(name)
                return whole
        found: torch.Tensor | None = None
        for place, opened in self._found[name]:
            begin = [max(pair) for pair in zip(place.offsets, wanted.offsets, strict=True)]
            end = [min(pair) for pair in zip(place.end, wanted.end, strict=True)]
            if any(b >= e for b, e in zip(begin, end, strict=True)):
                continue
            piece = opened.get_slice(name)[_box(begin, end, place.offsets)]
            if found is None:
                found = piece.new_empty(wanted.shape)
            found[_box(begin, end, wanted.offsets)] = piece
        # Nothing in it: only the type is asked for.
        return self._found[name][0][1].get_slice(name)[:1].new_empty(wanted.shape) if found is None else found


def _box(begin: Sequence[int], end: Sequence[int], origin: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(b - o, e - o) for b, e, o in zip(begin, end, origin, strict=True))
