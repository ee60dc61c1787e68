"""Quantizes a GGUF file, as llama.cpp's `llama_model_quantize` does it: the same file, bit for bit.

Rows are read, quantized and written in chunks. So memory does not depend on the size of the model or of a tensor.
"""

import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from hub.errors import ModelError
from hub.system.cores import usable_cores
from hub.system.space import check_space, is_full, too_full
from hub.system.waiting import Say, counted, silent
from hub.tasks.export.gguf.container import Container, Tensor, pack_container, read_container, uint32
from hub.tasks.export.gguf.ggml import quantize_rows
from hub.tasks.export.gguf.kinds import FLOATS, Kind, TensorType
from hub.tasks.export.gguf.tensor_types import choose_types, needs_imatrix, num_dims

QUANTIZATION_VERSION = 2
"""`GGML_QNT_VERSION` of ggml.h."""

_CHUNK = 1 << 22
"""Weights that are quantized in one call: 16 MiB as float32."""

_LAYER = re.compile(r"blk\.(\d+)\.")
_SPLIT = ("split.no", "split.count", "split.tensors.count")
Importance = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Quantized:
    """What was written."""

    file: Path
    num_bytes: int
    types: dict[str, TensorType]
    """Of each tensor, by its name in the file."""

    without_importance: tuple[str, ...]
    """Quantized tensors that the importance matrix does not have. Empty if there is no matrix."""

    unfit: tuple[str, ...]
    """Tensors with rows that are no whole number of blocks. They are stored in another type, most of them with more bits."""

    def remark(self) -> str:
        """What the user should know of a file whose kind does not fit the width of its model. Empty: nothing."""
        if not self.unfit:
            return ""
        matrices = sum(kind not in (TensorType.F32, TensorType.I32) for kind in self.types.values())
        instead = sorted({self.types[name].name.lower() for name in self.unfit})
        return (
            f"{self.file.name}: rows of {len(self.unfit)} of {matrices} matrices are no whole number of blocks, so these are "
            f"stored as {', '.join(instead)}, as llama.cpp does it. "
            + ("Take quant=bf16" if "f16" in instead else "quant=q8_0 fits, and imatrix=train brings others closer")
        )


def quantize_file(
    source: Path,
    target: Path,
    kind: Kind,
    importance: Importance | None = None,
    num_threads: int | None = None,
    say: Say = silent,
) -> Quantized:
    """Write a GGUF file of another kind. The target appears whole or not at all.

    Args:
        source: a file of floats: f32, f16 or bf16.
        target: the file to write. An existing one is replaced.
        kind: of the target.
        importance: by tensor, the mean of the square of each input channel. Of a tensor with experts, those of all experts
            in a row.
        num_threads: None: as many as there are cores.
        say: receives a line now and then.

    Raises:
        ModelError: the source is no GGUF file of floats, a weight is not finite in the new type, a tensor needs an
            importance matrix, or it can't be written.
        ConfigError: the disk is full.
    """
    container = read_container(source)
    tensors = sorted(container.tensors, key=_order)
    types, unfit = choose_types(container, tensors, kind, importance is not None)
    written = [
        replace(tensor, type=new, shape=tensor.shape[: num_dims(tensor)]) for tensor, new in zip(tensors, types, strict=True)
    ]
    pairs = list(zip(tensors, written, strict=True))
    rows = {new.name: _importance_of(old, new, kind, importance) for old, new in pairs}
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    threads = num_threads or usable_cores()
    needed, what = sum(tensor.num_bytes for tensor in written), target.name
    check_space(target.parent, what, needed)
    try:
        with aside.open("wb") as stream:
            stream.write(pack_container(_metadata(container, kind), written, container.alignment))
            with ThreadPoolExecutor(threads) as pool:
                for old, new in counted(pairs, len(pairs), f"hub: gguf: {kind.name}: {{}} tensors", say):
                    _write_tensor(stream, source, container, (old, new), rows[new.name], (pool, threads))
            stream.flush()
            os.fsync(stream.fileno())
            num_bytes = stream.tell()
        aside.replace(target)
    except OSError as error:
        aside.unlink(missing_ok=True)
        if is_full(error):
            raise too_full(target.parent, what, needed) from None
        raise ModelError(f"{target}: can't write it ({error.strerror}). Take another folder") from error
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
    missing = [new.name for old, new in pairs if new.type not in FLOATS and old.type != new.type and rows[new.name] is None]
    types_by_name = {tensor.name: tensor.type for tensor in written}
    return Quantized(target, num_bytes, types_by_name, tuple(missing) if importance is not None else (), tuple(unfit))


def _order(tensor: Tensor) -> tuple[int, bytes]:
    """llama.cpp's order: those of no layer first, then by layer and name."""
    match = _LAYER.match(tensor.name)
    return int(match[1]) if match else -1, tensor.name.encode()


def _metadata(container: Container, kind: Kind) -> dict[str, bytes]:
    changed = {
        "general.quantization_version": uint32(QUANTIZATION_VERSION),
        "general.file_type": uint32(kind.file_type),
    }
    kept = {key: raw for key, raw in container.metadata.items() if key not in changed and key not in _SPLIT}
    return kept | changed


def _importance_of(old: Tensor, new: Tensor, kind: Kind, importance: Importance | None) -> NDArray[np.float32] | None:
    """The importance of each matrix of a tensor: (experts, input channels). None if it has none."""
    if old.type == new.type:
        return None
    if old.type not in FLOATS:
        raise ModelError(
            f"{old.name} is stored as {old.type.name.lower()} and can't be quantized a second time. "
            "Quantize a file of quant=f16, bf16 or f32"
        )
    found = None if importance is None else importance.get(old.name)
    experts = old.shape[2] if len(old.shape) > 2 else 1
    if found is None:
        if needs_imatrix(new, kind):
            raise ModelError(
                f"quant={kind.name} stores {old.name} in so few bits that it needs an importance matrix. "
                + ("The matrix does not have this tensor. Take q4_k_m" if importance is not None else "Add imatrix=train")
            )
        return None
    if found.size != old.row * experts or not np.isfinite(found).all():
        raise ModelError(
            f"The importance matrix has {found.size} numbers for {old.name}, which takes {old.row * experts} finite ones. "
            "Make it with this model"
        )
    return np.ascontiguousarray(found, dtype=np.float32).reshape(experts, old.row)


def _write_tensor(
    stream: BinaryIO,
    source: Path,
    container: Container,
    pair: tuple[Tensor, Tensor],
    importance: NDArray[np.float32] | None,
    workers: tuple[ThreadPoolExecutor, int],
) -> None:
    old, new = pair
    begin = container.data_start + old.offset
    if old.type == new.type:
        for first in range(0, old.num_bytes, 4 * _CHUNK):
            stream.write(_read(source, begin + first, min(4 * _CHUNK, old.num_bytes - first)).data)
    else:

        def quantized(job: Job) -> NDArray[np.uint8]:
            first, num_rows, importance_of_rows = job
            raw = _read(source, begin + first * old.row_bytes, num_rows * old.row_bytes)
            return _quantized(new, _floats(raw, old.type).reshape(num_rows, old.row), importance_of_rows)

        for stored in _in_order(quantized, _chunks(old, importance), *workers):
            stream.write(stored.data)
    stream.write(bytes(-new.num_bytes % container.alignment))


Job = tuple[int, int, NDArray[np.float32] | None]


def _read(file: Path, begin: int, num_bytes: int) -> NDArray[np.uint8]:
    return np.fromfile(file, np.uint8, num_bytes, offset=begin)


def _chunks(tensor: Tensor, importance: NDArray[np.float32] | None) -> Iterator[Job]:
    """Chunks of rows, each of one expert: the first row, the number of rows, and the importance of their channels."""
    rows_of_expert = tensor.shape[1]
    chunk = max(1, _CHUNK // tensor.row)
    for expert in range(tensor.num_rows // rows_of_expert):
        of_expert = None if importance is None else importance[expert % len(importance)]
        for first in range(0, rows_of_expert, chunk):
            yield expert * rows_of_expert + first, min(chunk, rows_of_expert - first), of_expert


def _quantized(new: Tensor, rows: NDArray[np.float32], importance: NDArray[np.float32] | None) -> NDArray[np.uint8]:
    stored = quantize_rows(rows, new.type, importance)
    if stored is None:
        raise ModelError(
            f"{new.name} has a weight that is not finite in {new.type.name.lower()}"
            + (" (float16 ends at 65504). Take quant=bf16" if new.type == TensorType.F16 else ". The model is damaged")
        )
    return stored


def _floats(raw: NDArray[np.uint8], stored_as: TensorType) -> NDArray[np.float32]:
    """Weights as float32. Each of the three types is a subset of it, so nothing is rounded."""
    if stored_as == TensorType.BF16:
        upper = raw.view(np.uint16).astype(np.uint32)
        return (upper << 16).view(np.float32)
    return raw.view(np.float16 if stored_as == TensorType.F16 else np.float32).astype(np.float32, copy=False)


def _in_order(
    work: Callable[[Job], NDArray[np.uint8]], jobs: Iterator[Job], pool: ThreadPoolExecutor, num_threads: int
) -> Iterator[NDArray[np.uint8]]:
    """Results in the order of the jobs. No more are begun than there are threads to work and one to write."""
    waiting: deque[Future[NDArray[np.uint8]]] = deque()
    for job in jobs:
        waiting.append(pool.submit(work, job))
        if len(waiting) > num_threads:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
