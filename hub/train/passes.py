"""Passes of the model that a run trains, as an objective may ask for them before the first step and after the last one."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

import torch

from hub.data.samples.sample import Unit
from hub.train.layout.layout import Layout
from hub.train.losses.objective import Passes
from hub.train.setup.samples import SampleSource
from hub.train.setup.setup import Setup
from hub.train.step import Criterion, evaluation_chunks, log_probabilities

Chunks = Iterable[tuple[Sequence[Unit], bool]]


def passes_of(
    setup: Setup,
    model: torch.nn.Module,
    criterion: Criterion,
    layout: Callable[[], Layout],
    keep: Callable[[Layout], None],
    chunks: Chunks,
) -> Passes:
    """Return the passes of a model.

    Args:
        setup: config, processes.
        model: as it trains.
        criterion: the objective, and how passes compute it.
        layout: gives how they are split.
        keep: takes the layout that fit.
        chunks: see `Passes.chunks`; iterated anew for each call.
    """

    def values_of(units: Sequence[Unit], training: bool) -> torch.Tensor:
        model.train(training)
        try:
            values, used = log_probabilities(setup.session, model, units, layout(), criterion)
        finally:
            model.train()
        keep(used)
        return values

    device = setup.session.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    describes = {"device": name, "dtype": str(setup.session.compute_dtype), "packed": layout().packed}
    return Passes(lambda: iter(chunks), values_of, layout(), describes)


class RunChunks:
    """The units of a run's steps, then those of its evaluation set, each time that they are iterated."""

    def __init__(self, setup: Setup, source: SampleSource, criterion: Criterion) -> None:
        """Args:
        setup: data, processes.
        source: gives the steps.
        criterion: its objective completes the units.
        """
        self._setup, self._source, self._objective = setup, source, criterion.objective

    def __iter__(self) -> Iterator[tuple[Sequence[Unit], bool]]:
        steps = ((self._objective.completed(units), True) for _, units in self._source.steps(after=0))
        evaluation = self._objective.completed(self._setup.data.evaluation)
        held_out = ((chunk, False) for chunk in evaluation_chunks(evaluation, self._setup.session.group.world))
        return chain(steps, held_out)
