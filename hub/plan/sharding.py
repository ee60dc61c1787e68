"""What a process holds of a sharded model besides its shards: weights that are gathered, gradients that are on their way."""

from dataclasses import dataclass

import torch

from hub.plan.prediction import Part

GATHERED_LAYERS = 3
"""Copies of a layer that FSDP2 holds at a time: the layer at work, the next one as it is received, and its parts."""


@dataclass(frozen=True)
class Gathered:
    """What sharding takes."""

    shards_weights: bool
    replicated: tuple[torch.nn.Parameter, ...]
    """Weights that each process has whole."""

    parts: tuple[Part, ...]
    dtype: torch.dtype | None = None
    """Of the weights as they are gathered, if they are cast for it."""

    @property
    def num_bytes(self) -> int:
        """All of it."""
        return sum(part.num_bytes for part in self.parts)


def gathered_by(
    model: torch.nn.Module, layers: list[torch.nn.Module], strategy: str, world: int, dtype: torch.dtype
) -> Gathered:
    """What a strategy takes besides weights, gradients and moments.

    Args:
        model: with tensors of a FakeTensorMode.
        layers: its decoder layers.
        strategy: its name.
        world: processes.
        dtype: of the arithmetic.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    has_frozen = any(not parameter.requires_grad for parameter in model.parameters())
    if strategy == "ddp" or world == 1:
        return Gathered(False, (), _all_reduce(trained, world))
    if strategy != "fsdp":
        buckets = 2 * 5 * 10**8 * 2  # DeepSpeed's default reduce and all-gather buckets, in 16-bit numbers
        return Gathered(strategy == "zero3", (), (Part("buckets of DeepSpeed", buckets, "its defaults: 5e8 numbers each"),))
    replicated = tuple(trained) if has_frozen else ()
    whole = {id(parameter) for parameter in replicated}
    mixed = not has_frozen and dtype != torch.float32

    def num_bytes(module_parameters: list[torch.nn.Parameter], itemsize: int | None = None) -> int:
        sharded = {id(p): p for p in module_parameters if id(p) not in whole}
        return sum(p.numel() * (itemsize or (dtype.itemsize if mixed else p.element_size())) for p in sharded.values())

    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    root = num_bytes([p for p in model.parameters() if id(p) not in inside])
    largest = max((num_bytes(list(layer.parameters())) for layer in layers), default=0)
    parts = [
        Part("gathered layers", GATHERED_LAYERS * largest, f"FSDP2: {GATHERED_LAYERS} times the largest layer"),
        Part("gathered embedding and output layer", root, "FSDP2: they are outside all layers"),
    ]
    if not has_frozen:
        reduced = max((num_bytes(list(layer.parameters()), 4) for layer in layers), default=0)
        parts.append(Part("gradients on their way", largest + 2 * reduced, "FSDP2: of a layer, in float32 for two of them"))
    return Gathered(True, replicated, tuple(parts), dtype if mixed else None)


def _all_reduce(trained: list[torch.nn.Parameter], world: int) -> tuple[Part, ...]:
    """Gradients are summed in buckets of at least float32 (`sum_gradients`)."""
    if world == 1:
        return ()
    bucket = min(2**28 + max((p.numel() * 4 for p in trained), default=0), sum(p.numel() * 4 for p in trained))
    return (Part("gradients on their way", bucket, "a bucket of gradients, summed over the processes"),)
