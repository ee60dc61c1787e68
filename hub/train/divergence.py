"""Steps with NaN or infinity, and spikes of the loss."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hub.data.samples.sample import Unit
from hub.errors import DivergedError
from hub.train.meters import SpikeMeter
from hub.train.step import StepOutcome

MOST_SKIPPED_IN_A_ROW = 3
"""Consecutive steps with NaN or infinity after which the run ends. Each of them is skipped."""


class Divergence:
    """Watches the steps of one run."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """Args:
        say: logs a line.
        """
        self._say = say
        self._num_skipped = self._num_in_a_row = 0
        self._spikes = SpikeMeter()

    @property
    def is_hopeless(self) -> bool:
        """Whether so many steps in a row were skipped that the run should end."""
        return self._num_in_a_row >= MOST_SKIPPED_IN_A_ROW

    def judge(self, step: int, outcome: StepOutcome) -> dict[str, bool]:
        """Check a step for NaN and infinity, which changed no weight, and for a spike of the loss.

        Returns:
            Its marks in metrics.jsonl: `skipped` or `spike`, if it is one of them.
        """
        if outcome.finite:
            self._num_in_a_row = 0
            if not self._spikes.is_spike(outcome.loss):
                return {}
            self._say(f"step {step}: the loss jumped to {outcome.loss:.4f}")
            return {"spike": True}
        self._num_skipped += 1
        self._num_in_a_row += 1
        self._say(f"step {step} is skipped, the weights stay as they were: {_numbers(outcome)}")
        return {"skipped": True}

    def error(
        self, step: int, outcome: StepOutcome, units: Sequence[Unit], learning_rate: float, checkpoint: Path | None
    ) -> DivergedError:
        """The error that ends a hopeless run.

        Args:
            step: the last step.
            outcome: what it gave.
            units: what it was computed on.
            learning_rate: `algo.learning_rate`.
            checkpoint: has the weights from before the skipped steps. None: it could not be written.
        """
        rows, where = ", ".join(unit.where for unit in units[:5]), checkpoint or "no checkpoint could be written"
        return DivergedError(
            f"{self._num_in_a_row} steps in a row gave NaN or infinity (the last: step {step}, {_numbers(outcome)}; rows "
            f"{rows}, ...). Type a lower algo.learning_rate than {learning_rate:g} or algo.max_grad_norm=0.5, and look at "
            f"those rows. The weights before these steps: {where}"
        )

    def state(self) -> dict[str, object]:
        """What `restore` needs, as JSON."""
        return {"skipped": self._num_skipped, "spikes": self._spikes.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._num_skipped = state["skipped"]
        self._spikes.restore(state["spikes"])


def _numbers(outcome: StepOutcome) -> str:
    return f"loss {outcome.loss}, gradient norm {outcome.grad_norm}"
