"""The best evaluation of a run so far: for early stopping, and for the model that the run keeps."""

import math
from typing import Any


class Best:
    """Follows the evaluations of a run. Lower is better; a value that is not finite is never the best."""

    def __init__(self, patience: int | None, min_delta: float) -> None:
        """Args:
        patience: evaluations in a row without a new best one after which training ends. None: it does not.
        min_delta: by how much an evaluation must be better to count as one for that.
        """
        self._patience, self._min_delta = patience, min_delta
        self.step: int | None = None
        """Step of the best evaluation. None: there was none after a step."""

        self.value = math.inf
        self._to_beat = math.inf
        self.num_without = 0
        """Evaluations in a row that were not better than the best one before them by `min_delta`."""

    def before_training(self, value: float) -> None:
        """Take the value that the untrained model has. It is what patience begins with, but no result of training."""
        if math.isfinite(value):
            self._to_beat = value

    def observe(self, step: int, value: float) -> bool:
        """Take an evaluation. Returns whether it is the best after any step so far."""
        if value < self._to_beat - self._min_delta:  # false for NaN
            self._to_beat, self.num_without = value, 0
        else:
            self.num_without += 1
        if not value < self.value:
            return False
        self.step, self.value = step, value
        return True

    @property
    def ends_training(self) -> bool:
        """Whether patience has run out."""
        return self._patience is not None and self.num_without >= self._patience

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON."""
        finite = {name: value for name, value in (("value", self.value), ("to_beat", self._to_beat)) if math.isfinite(value)}
        return {"step": self.step, "num_without": self.num_without, **finite}

    def restore(self, state: dict[str, Any]) -> None:
        """Set the state that `state` gave."""
        self.step, self.num_without = state["step"], state["num_without"]
        self.value, self._to_beat = state.get("value", math.inf), state.get("to_beat", math.inf)
