"""The importance matrix of a model: how strong each input channel of each weight is on given rows of tokens.

It is the mean of the square of the channel over tokens. Quantization weighs the error of each weight with it. llama.cpp's tool
llama-imatrix measures the same (tools/imatrix/imatrix.cpp); here the rows are those of the user's own data.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.overrides import TorchFunctionMode

from hub.errors import ModelError
from hub.tasks.export.gguf.container import Container, Tensor, read_container
from hub.tasks.export.gguf.kinds import FLOATS, TensorType
from hub.tasks.export.gguf.tensor_types import is_quantized_at_all

_PRODUCTS: dict[Any, tuple[int, int, bool]] = {
    torch.nn.functional.linear: (0, 1, False),
    torch.addmm: (1, 2, True),
    torch.matmul: (0, 1, True),
    torch.mm: (0, 1, True),
    torch.Tensor.matmul: (0, 1, True),
    torch.Tensor.__matmul__: (0, 1, True),
    torch.Tensor.mm: (0, 1, True),
}
"""Products with a weight: where the input and the weight stand, and whether the weight is (in, out)."""

_LEAST_CORRELATION = 0.5
_ALIKE = {"gate_up_proj": ("gate", "up", "gate_up"), "down_proj": ("down",), "gate_proj": ("gate",), "up_proj": ("up",)}


@dataclass
class _Channels:
    """Input channels of a matrix."""

    squares: torch.Tensor
    """Sum over tokens: (channels,)."""

    weights: torch.Tensor
    """Sum of the squares of the weights of each channel, by which the matrix is recognized in a file."""

    num_tokens: int = 0


@dataclass
class Collected:
    """What was measured on a model, by the names of its parameters."""

    channels: dict[tuple[str, int], _Channels] = field(default_factory=dict)
    """By parameter and expert. Parameters of one matrix have expert 0."""

    num_experts: dict[str, int] = field(default_factory=dict)
    num_tokens: int = 0


@dataclass(frozen=True)
class Importance:
    """The importance matrix for a GGUF file."""

    by_tensor: dict[str, NDArray[np.float32]]
    """Of each tensor, the channels of all its experts in a row."""

    num_tokens: int
    missing: tuple[str, ...]
    """Matrices of layers that were not measured, or are stored in another order of channels. They are quantized without it."""


class _Listener(TorchFunctionMode):
    """Sees every product of an input and a weight in a forward pass, whatever module computes it."""

    def __init__(self, model: torch.nn.Module, collected: Collected) -> None:
        super().__init__()
        named = sorted(
            ((weight.data_ptr(), name, weight) for name, weight in model.named_parameters() if weight.ndim in (2, 3)),
            key=lambda entry: entry[0],
        )
        self._starts = [start for start, _, _ in named]
        self._named = named
        self._collected = collected

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        places = _PRODUCTS.get(func)
        if places is not None:
            self._see(args, kwargs or {}, *places)
        return func(*args, **(kwargs or {}))

    def _see(self, args: tuple[Any, ...], kwargs: dict[str, Any], at: int, weight_at: int, transposed: bool) -> None:
        if len(args) <= weight_at and "weight" not in kwargs:
            return
        values = args[at] if len(args) > at else kwargs.get("input")
        weight = args[weight_at] if len(args) > weight_at else kwargs["weight"]
        if not (isinstance(values, torch.Tensor) and isinstance(weight, torch.Tensor)) or weight.ndim != 2:
            return
        place = bisect_right(self._starts, weight.data_ptr()) - 1
        if place < 0:
            return
        start, name, whole = self._named[place]
        matrix = whole.shape[-1] * whole.shape[-2]
        expert, rest = divmod((weight.data_ptr() - start) // whole.element_size(), matrix)
        experts = whole.shape[0] if whole.ndim == 3 else 1
        if rest or expert >= experts or weight.numel() != matrix:
            return
        with torch._C.DisableTorchFunction():
            flat = values.detach().reshape(-1, values.shape[-1]).float()
            entry = self._collected.channels.get((name, expert))
            if entry is None:
                columns = weight.detach().float().square().sum(1 if transposed else 0)
                entry = _Channels(torch.zeros_like(columns), columns)
                self._collected.channels[name, expert] = entry
                self._collected.num_experts[name] = experts
            entry.squares += flat.square().sum(0)
            entry.num_tokens += len(flat)


def collect(model: torch.nn.Module, rows: Iterable[Sequence[int]], device: torch.device | None = None) -> Collected:
    """Measure the input channels of all weights of a model.

    Args:
        model: in evaluation mode. An adapter may be active; merged weights give the same.
        rows: token ids.
        device: of the input. None: that of the first weight.
    """
    collected = Collected()
    device = device or next(model.parameters()).device
    with torch.no_grad(), _experts_one_by_one(model), _Listener(model, collected):
        for row in rows:
            if len(row):
                model(input_ids=torch.tensor([list(row)], device=device), use_cache=False)
                collected.num_tokens += len(row)
    if not collected.num_tokens:
        raise ModelError("An importance matrix needs rows of tokens, and there are none. Take imatrix=none")
    return collected


@contextmanager
def _experts_one_by_one(model: torch.nn.Module) -> Iterator[None]:
    """Experts are computed one after the other, and not in one grouped product, in which they can't be told apart."""
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    before = [
        (config, config._experts_implementation) for config in configs.values() if hasattr(config, "_experts_implementation")
    ]
    try:
        for config, _ in before:
            config._experts_implementation = "eager"
        yield
    finally:
        for config, value in before:
            config._experts_implementation = value


def importance_of_file(collected: Collected, file: Path) -> Importance:
    """The importance matrix for the tensors of a GGUF file of the model that was measured.

    A tensor gets its channels if the squares of its weights, summed by channel, follow those of the model's. So a converter
    that stores channels in another order gives no wrong matrix. An expert that no token reached counts all channels alike.

    Args:
        collected: of the model.
        file: its GGUF file of floats.

    Raises:
        ModelError: the file can't be read, or `gguf` is not installed.
    """
    container = read_container(file)
    by_name = {tensor.name: tensor for tensor in container.tensors}
    names = _names_in_file(collected, container)
    found: dict[str, NDArray[np.float32]] = {}
    for targets, experts in names.items():
        tensors = [by_name[name] for name in targets if name in by_name]
        if tensors and _is_same_order(tensors, experts, file, container):
            for tensor in tensors:
                found[tensor.name] = _joined(experts, _num_experts(tensor), tensor.row)
    layers = [tensor.name for tensor in container.tensors if tensor.name.startswith("blk.") and is_quantized_at_all(tensor)]
    return Importance(found, collected.num_tokens, tuple(name for name in layers if name not in found))


def _num_experts(tensor: Tensor) -> int:
    return tensor.shape[2] if len(tensor.shape) > 2 else 1


def _joined(experts: Mapping[int, _Channels], num_experts: int, row: int) -> NDArray[np.float32]:
    joined = np.ones((num_experts, row), np.float32)
    for number, channels in experts.items():
        joined[number] = (channels.squares / channels.num_tokens).cpu().numpy()
    return joined.reshape(-1)


def _names_in_file(collected: Collected, container: Container) -> dict[tuple[str, ...], dict[int, _Channels]]:
    """Measured channels by the names that a parameter may have in the file, and by expert."""
    try:
        import gguf
    except ImportError:
        raise ModelError('imatrix=train needs the package gguf. Type: pip install "finetune-hub[gguf]"') from None
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    architecture = numbers.get(container.architecture, gguf.MODEL_ARCH.LLAMA)
    num_layers = int(container.value(f"{container.architecture}.block_count", 0))
    tensor_map = gguf.get_tensor_name_map(architecture, num_layers)
    names: dict[tuple[str, ...], dict[int, _Channels]] = {}
    for (parameter, expert), channels in collected.channels.items():
        plain = re.sub(r"^(base_model\.model\.)?", "", parameter).replace(".base_layer.", ".").replace("language_model.", "")
        targets, number = _targets(plain, collected.num_experts[parameter], tensor_map)
        if targets:
            names.setdefault(targets, {})[expert if number is None else number] = channels
    return names


def _targets(parameter: str, num_experts: int, tensor_map: Any) -> tuple[tuple[str, ...], int | None]:
    """Names in the file, and the expert that the name of the parameter tells."""
    if num_experts > 1:
        match = re.search(r"\.(\d+)\..*\.(\w+?)(?:\.weight)?$", parameter)
        parts = _ALIKE.get(match[2], ()) if match else ()
        return tuple(f"blk.{match[1]}.ffn_{part}_exps.weight" for part in parts) if match else (), None
    number = re.search(r"\.experts\.(\d+)\.", parameter)
    name = tensor_map.get_name(re.sub(r"\.experts\.\d+\.", ".experts.", parameter), (".weight",))
    if name is None or not name.startswith("blk."):
        return (), None
    return (name if name.endswith(".weight") else f"{name}.weight",), int(number[1]) if number else None


def _is_same_order(tensors: list[Tensor], experts: Mapping[int, _Channels], file: Path, container: Container) -> bool:
    for number, channels in experts.items():
        expected = channels.weights.double().cpu().numpy()
        if any(tensor.row != expected.size or number >= _num_experts(tensor) for tensor in tensors):
            return False
        stored = sum(_columns(tensor, number, file, container) for tensor in tensors)
        if expected.std() > 0 and not np.corrcoef(expected, stored)[0, 1] > _LEAST_CORRELATION:
            return False
    return True


def _columns(tensor: Tensor, expert: int, file: Path, container: Container) -> NDArray[np.float64]:
    """The squares of the weights of a matrix in a file, summed by channel."""
    if tensor.type not in FLOATS:
        raise ModelError(f"{file.name} is quantized. An importance matrix is made for a file of quant=f16, bf16 or f32")
    begin = container.data_start + tensor.offset + expert * tensor.shape[1] * tensor.row_bytes
    stored_as = {TensorType.F32: np.float32, TensorType.F16: np.float16}.get(tensor.type, np.uint16)
    raw = np.memmap(file, stored_as, "r", begin, (tensor.shape[1], tensor.row))
    total = np.zeros(tensor.row)
    for first in range(0, len(raw), 1024):
        part = raw[first : first + 1024]
        if tensor.type == TensorType.BF16:
            part = (part.astype(np.uint32) << 16).view(np.float32)
        total += np.square(part, dtype=np.float64).sum(0)
    return total
