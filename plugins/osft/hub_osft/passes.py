"""Passes of a model over data to protect, without training on it: how samples are cut into batches, and where the model is."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hub.data.prepare import Sample
from hub.train.setup.setup import Setup


def batches(samples: Sequence[Sample], most_tokens: int, rank: int, world: int) -> Iterator[list[Sample]]:
    """This rank's samples in groups of similar length; as many groups on every rank, the last of them may be empty.

    Args:
        samples: the same on all ranks.
        most_tokens: of one group, padding included. A longer sample is a group of its own.
        rank: of this process.
        world: number of processes.
    """
    ordered = sorted(samples, key=len)
    groups: list[list[Sample]] = []
    for sample in ordered:
        if not groups or (len(groups[-1]) + 1) * len(sample) > most_tokens:
            groups.append([])
        groups[-1].append(sample)
    groups += [[] for _ in range(-len(groups) % world)]
    yield from groups[rank::world]


@contextmanager
def on_device(setup: Setup, model: Any) -> Iterator[None]:
    """Models that will be shared out wait on the host: bring them to the device for these passes."""
    device = setup.session.device
    home = next(model.parameters()).device
    if home == device or any(hasattr(p, "placements") for p in model.parameters()):
        yield
        return
    model.to(device)
    try:
        yield
    finally:
        model.to(home)
