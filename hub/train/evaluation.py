"""Evaluations of a run: when the held-out loss is measured, and all that its value decides."""

from collections.abc import Callable, Mapping
from typing import Any

from torch.optim.lr_scheduler import LambdaLR

from hub.config.schema import AlgoConfig
from hub.errors import ConfigError
from hub.train.best import Best
from hub.train.measuring import Measured, chosen
from hub.train.optim import observe_loss

LOSS = "loss"
"""The value of `algo.best_by` that stands for the held-out loss."""


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
        self.best = Best(algo.early_stopping_patience, algo.early_stopping_min_delta)
        self.is_new_best = False
        """Whether the newest regular evaluation is the best one so far."""
        self.score: float | None = None
        """What the newest step was worth, by `algo.best_by`: lower is better. None: it was not measured."""
        self._last_step = 0
        self._loss_of_best: float | None = None

    def before_training(self) -> float | None:
        """Measure the loss of the model that is not trained yet."""
        self.before = self.last = self._measure()
        if self.before is not None and self._algo.best_by == LOSS:
            self.best.before_training(self.before)
        return self.before

    @property
    def ends_training(self) -> bool:
        """Whether the evaluations say that training ends here (`early_stopping_patience`)."""
        return self.best.ends_training

    def after_step(self, step: int, is_last: bool, is_stopped: bool) -> float | None:
        """Measure after a step if it is time, and act on the value.

        Args:
            step: number of the step.
            is_last: whether it is the last one of the run.
            is_stopped: whether a signal stops the run after it.

        Returns:
            The held-out loss, if it was measured.
        """
        due = is_due(step, self._algo.eval_every_steps)
        self.is_new_best, self.score = False, None
        if not (due or is_last or is_stopped) or (loss := self._measure()) is None:
            return None
        self.last, self._last_step = loss, step
        # Not at a signal: a run that is stopped and resumed trains, and keeps, like one that is not.
        if due or is_last:
            self.score = loss if self._algo.best_by == LOSS else None
            self._act(step, loss)
        return loss

    def _act(self, step: int, loss: float) -> None:
        """Do what a regular evaluation decides."""
        if self._algo.watches_evaluations and self._algo.best_by == LOSS:
            self.is_new_best = self.best.observe(step, loss)
        if changed := observe_loss(self._scheduler, loss):
            self._say(f"step {step}: learning rate {changed:.3g} from now on ({self._algo.lr_scheduler})")

    def before_measured(self, figures: Mapping[str, Measured]) -> None:
        """Take what was measured on the model that is not trained yet.

        Raises:
            ConfigError: `algo.best_by` is not among it.
        """
        name = self._algo.best_by
        if name == LOSS or not self._algo.watches_evaluations:
            return
        if (figure := chosen(figures, name)) is None:
            raise ConfigError(f"algo.best_by={name} is not measured. Measured are: {', '.join(figures)}")
        self.best.before_training(figure.cost)

    def measured(self, step: int, figures: Mapping[str, Measured]) -> None:
        """Act on what was measured after a step."""
        if self._algo.best_by == LOSS or (figure := chosen(figures, self._algo.best_by)) is None:
            return
        self.score = figure.cost
        if self._algo.watches_evaluations:
            self.is_new_best = self.best.observe(step, figure.cost)
            if self.is_new_best:
                self._loss_of_best = self.last if self._last_step == step else None

    @property
    def kept_step(self) -> int | None:
        """The step whose model is the result. None: `algo.keep_best` is not set, or nothing was measured."""
        return self.best.step if self._algo.keep_best else None

    @property
    def of_result(self) -> float | None:
        """The held-out loss of the model that is the result. None: it was not measured."""
        if self.kept_step is None or self.kept_step == self._last_step:
            return self.last
        return self.best.value if self._algo.best_by == LOSS else self._loss_of_best

    def keep(self, step: int, value: float) -> None:
        """Take another model as the best one: that of the best evaluation is lost."""
        self.best.step, self.best.value, self._loss_of_best = step, value, None

    def keep_last(self) -> None:
        """Forget the best evaluation: its model is lost."""
        self.best.step = None

    def why_ended(self, step: int, total: int) -> str:
        """A line on early stopping, after the last step."""
        return (
            f"training ends after step {step} of {total}: {self.best.num_without} evaluations in a row were not better "
            f"(algo.early_stopping_patience={self._algo.early_stopping_patience})"
        )

    def why_kept(self, step: int) -> str:
        """A line on the model that is the result, if it is not the last one."""
        if self._algo.best_by != LOSS:
            return f"the result is the model of step {self.best.step}, with the best {self._algo.best_by}"
        last = "" if self.last is None else f" (after step {step}: {self.last:.4f})"
        return f"the result is the model of step {self.best.step}, with the best held-out loss {self.best.value:.4f}{last}"

    def state(self) -> dict[str, Any]:
        """What `restore` needs, as JSON."""
        losses = {"eval_loss_before": self.before, "last_eval_loss": self.last, "eval_loss_of_best": self._loss_of_best}
        return {**losses, "best": self.best.state()}

    def restore(self, state: Mapping[str, Any], same_set: bool = True) -> None:
        """Set what `state` gave.

        Args:
            state: of a checkpoint.
            same_set: whether the evaluation set is the same. If not, the best evaluation is found anew.
        """
        self.before, self.last = state["eval_loss_before"], state["last_eval_loss"]
        if not same_set:
            return
        if "best" in state:
            self.best.restore(state["best"])
        self._loss_of_best = state.get("eval_loss_of_best")
