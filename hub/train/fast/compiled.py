"""Decoder layers compiled once for rows of any length.

Left alone, torch.compile makes a version of a layer for the lengths that it meets first and another one when they change, and
does so twice, since the first layer's input has no gradient where the embedding is frozen. Here the lengths are free from the
beginning and every input has a gradient: one version serves all layers of a kind and all micro-batches. `num_compiled` counts.
"""

from collections.abc import Collection
from typing import Any

import torch

RECOMPILE_LIMIT = 64
"""Versions of one layer's code: of its few kinds, with and without a mask, with one row and with several."""

LENGTHS = r"L\[.*max_length_[qk]'\]"
"""Numbers among a layer's arguments that change with the samples, as dynamo names them (`dynamic_sources`)."""


def compile_layers(layers: list[torch.nn.Module]) -> None:
    """Compile what each layer does in training. In evaluation it runs as it is: not worth a second version."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
    known = [name for name in torch.compiler.config.dynamic_sources.split(",") if name]
    torch.compiler.config.dynamic_sources = ",".join(dict.fromkeys([*known, LENGTHS]))
    for layer in layers:
        _compile(layer)


def num_compiled() -> int:
    """Graphs that were compiled in this process so far. It stays the same once nothing is compiled any more."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _compile(layer: torch.nn.Module) -> None:
    plain = layer.forward
    compiled = torch.compile(plain)

    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs.get("hidden_states")
        if not layer.training:
            return plain(*args, **kwargs)
        if isinstance(hidden, torch.Tensor):
            *sizes, _ = hidden.shape
            if sizes[-1] == 1:
                return plain(*args, **kwargs)  # torch takes a length of 1 for a constant, which would be one more version
            if torch.is_grad_enabled() and not hidden.requires_grad:
                hidden.requires_grad_()
            starts = kwargs.get("cu_seq_lens_q")
            _free((args, kwargs), {*sizes, *(() if starts is None else starts.shape)})
        return compiled(*args, **kwargs)

    layer.forward = forward


def _free(value: Any, sizes: Collection[int]) -> None:
    """Tell the compiler that these sizes may change, wherever they stand in the tensors of a layer's arguments.

    Not in the last dimension of a tensor of three: that holds features, whatever its size. A size of 1 can't be free.
    """
    if isinstance(value, torch.Tensor):
        for dim, size in enumerate(value.shape[:2] if value.ndim == 3 else value.shape):
            if size in sizes and size > 1:
                torch._dynamo.maybe_mark_dynamic(value, dim)
    elif isinstance(value, dict):
        for part in value.values():
            _free(part, sizes)
    elif isinstance(value, list | tuple):
        for part in value:
            _free(part, sizes)
