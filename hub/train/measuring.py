"""What the loop asks of measurements beyond the held-out loss: metrics of answers, tasks, general text."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch


class Measured(NamedTuple):
    """One figure of a model."""

    value: float
    better: str
    """`lower` or `higher`."""

    @property
    def cost(self) -> float:
        """The value with its sign such that lower is better."""
        return self.value if self.better == "lower" else -self.value


class Measurements(Protocol):
    """Measures a model before, while and after it is trained. All ranks call it at the same steps."""

    def has(self, step: int) -> bool:
        """Whether the model of a step was measured, in this process."""
        ...

    def measure(self, step: int, model: torch.nn.Module) -> Mapping[str, Measured]:
        """Measure the model as it is.

        Args:
            step: the last step; 0 before training.
            model: in training mode, which it is in afterwards too.

        Returns:
            Figure by name, `SET/METRIC`. Equal on all ranks.
        """
        ...


def chosen(figures: Mapping[str, Measured], name: str) -> Measured | None:
    """The figure of a name, `SET/METRIC` or `METRIC` of the first set that has it. None: there is none."""
    return next((figure for key, figure in figures.items() if f"/{key}".endswith(f"/{name}")), None)


def values_of(figures: Mapping[str, Measured]) -> dict[str, float]:
    """The values alone, for metrics.jsonl."""
    return {name: figure.value for name, figure in figures.items()}
