"""Evaluations of a run: when the held-out loss is measured, and all that its value decides."""

from collections.abc import Callable, Mapping
from typing import Any

from torch.optim.lr_scheduler import LambdaLR

from hub.config.schema import AlgoConfig
from hub.train.optim import observe_loss


def is_due(step: int, every: int | None) -> bool:
    """Whether something that happens every so many steps happens after this one. None: it never does."""
    return every is not None and step % every == 0


class Evaluations:
    """The held-out losses of one run. Equal on all ranks."""

    def __init__(
        self, algo: AlgoConfig, measure: Callable[[], float | None], scheduler: LambdaLR, say: Callable[[str], None]
    ) -> None:
        """Args:
        algo: the options.
        measure: measures the held-out loss of the model as it is. None: there is no evaluation set.
        scheduler: of the learning rate, which may follow the loss.
        say: logs a line.
        """
        self._algo, self._measure, self._scheduler, self._say = algo, measure, scheduler, say
        self.before: float | None = None
        """The held-out loss before training."""
        self.last: float | None = None
        """The newest held-out loss."""

    def before_training(self) -> float | None:
        """Measure the loss of the model that is not trained yet."""
        self.before = self.last = self._measure()
        return self.before

    def after_step(self, step: int, is_end: bool) -> float | None:
        """Measure after a step if it is time, and act on the value.

        Args:
            step: number of the step.
            is_end: whether it is the last one, of the run or before a signal stops it.

        Returns:
            The held-out loss, if it was measured.
        """
        due = is_due(step, self._algo.eval_every_steps)
        if not (due or is_end) or (loss := self._measure()) is None:
            return None
        self.last = loss
        # Not at a signal: a run that is stopped and resumed trains like one that is not.
        if due:
            self._act(step, loss)
        return loss

    def _act(self, step: int, loss: float) -> None:
        """Do what a regular evaluation decides."""
        if changed := observe_loss(self._scheduler, loss):
            self._say(f"step {step}: learning rate {changed:.3g} from now on ({self._algo.lr_scheduler})")

    def state(self) -> dict[str, float | None]:
        """What `restore` needs, as JSON."""
        return {"eval_loss_before": self.before, "last_eval_loss": self.last}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.before, self.last = state["eval_loss_before"], state["last_eval_loss"]
