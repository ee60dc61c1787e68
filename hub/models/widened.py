"""Arithmetic in float32 with weights that stay in 16 bits: each part of a model is in float32 only while it computes.

A model of 8 billion weights takes 15 GiB in bfloat16, which may be a file that is mapped into memory, and 30 GiB in float32.
Here it takes the memory of one more layer and of the output layer in float32, and gives the numbers of the float32 model.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from hub.models.structure import layers_of, output_layer

_NARROW = (torch.bfloat16, torch.float16)


def is_narrow(model: torch.nn.Module) -> bool:
    """Whether a model has weights in 16 bits."""
    return any(parameter.dtype in _NARROW for parameter in model.parameters())


@contextmanager
def widened(model: torch.nn.Module) -> Iterator[None]:
    """Compute in float32 within this context.

    Args:
        model: with weights in 16 bits. It must not train.
    """
    layers = layers_of(model)
    inner = {id(parameter) for layer in layers for parameter in layer.parameters()}
    head = output_layer(model)
    handles = [handle for layer in layers for handle in _widen_while_it_computes(layer)]
    stored: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
    for module in model.modules():
        outer = [one for one in module.parameters(recurse=False) if one.dtype in _NARROW and id(one) not in inner]
        if outer and isinstance(module, torch.nn.Embedding) and (head is None or head.weight is not module.weight):
            handles.append(module.register_forward_hook(lambda module, given, found: found.float()))  # large, few rows are read
        else:  # some families convert to the type of a weight before its module is called
            stored += _widen(outer)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, data in stored:
            parameter.data = data


def _widen(parameters: Iterable[torch.nn.Parameter]) -> list[tuple[torch.nn.Parameter, torch.Tensor]]:
    """Put parameters in float32. Returns those that were narrow, with their numbers as they were."""
    stored = []
    for parameter in parameters:
        if parameter.dtype in _NARROW:
            stored.append((parameter, parameter.data))
            parameter.data = parameter.data.float()
    return stored


def _widen_while_it_computes(part: torch.nn.Module) -> list[Any]:
    stored: list[tuple[torch.nn.Parameter, torch.Tensor]] = []

    def widen(module: torch.nn.Module, given: Any) -> None:
        stored.extend(_widen(module.parameters()))

    def narrow(module: torch.nn.Module, given: Any, found: Any) -> None:
        while stored:
            parameter, data = stored.pop()
            parameter.data = data

    return [part.register_forward_pre_hook(widen), part.register_forward_hook(narrow, always_call=True)]
