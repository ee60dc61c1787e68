"""Passes of a model over data to protect, without training on it: batches of samples, and the model's device."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from hub.data.prepare import Sample
from hub.train.setup.setup import Setup


def batches(samples: Sequence[Sample], max_tokens: int, rank: int, world: int) -> Iterator[list[Sample]]:
    """This rank's samples in groups of similar length. Every rank has the same number of groups; the last may be empty.

    Args:
        samples: the same on all ranks.
        max_tokens: maximum tokens of a group, including padding. A longer sample gets a separate group.
        rank: of this process.
        world: number of processes.
    """
    ordered = sorted(samples, key=len)
    groups: list[list[Sample]] = []
    for sample in ordered:
        if not groups or (len(groups[-1]) + 1) * len(sample) > max_tokens:
            groups.append([])
        groups[-1].append(sample)
    groups += [[] for _ in range(-len(groups) % world)]
    yield from groups[rank::world]


@contextmanager
def on_device(setup: Setup, model: torch.nn.Module) -> Iterator[None]:
    """Move a model to the device for these passes. A model that will be sharded is still on the CPU."""
    device = setup.session.device
    original = next(model.parameters()).device
    if original == device or any(hasattr(p, "placements") for p in model.parameters()):
        yield
        return
    model.to(device)
    try:
        yield
    finally:
        model.to(original)
