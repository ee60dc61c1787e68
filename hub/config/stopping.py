"""Options of when training ends before its last step, and of which weights are the result."""

from collections.abc import Iterator
from dataclasses import dataclass

from hub.config.option import option


@dataclass(kw_only=True)
class StoppingOptions:
    """Early stopping, and the best evaluation in place of the last one."""

    early_stopping_patience: int | None = option(None, ge=1)
    """Training ends after this many evaluations in a row without a new best one. null: it runs to its last step. Needs
    `eval_every_steps`."""

    early_stopping_min_delta: float = option(0.0, ge=0)
    """How much better than the best so far an evaluation must be for early stopping to count it as one."""

    keep_best: bool = False
    """The result is the model of the best evaluation after the first step, in place of the last model. Needs
    `eval_every_steps`."""

    best_by: str = "loss"
    """What the best evaluation is chosen by: loss (held-out), or the name of a metric or task that `evaluate` measures every
    `evaluate.every_steps` steps, e.g. exact_match."""

    @property
    def watches_evaluations(self) -> bool:
        """Whether evaluations decide about the end or the result of training."""
        return self.early_stopping_patience is not None or self.keep_best

    def stopping_problems(
        self, eval_every_steps: int | None, has_evaluation_set: bool, measures_every: int | None
    ) -> Iterator[str]:
        """One line for each clash of these options.

        Args:
            eval_every_steps: steps between evaluations of the held-out loss. None: there are none during training.
            has_evaluation_set: whether the data has one.
            measures_every: steps between measurements of metrics and tasks (`evaluate.every_steps`).
        """
        patience, delta = self.early_stopping_patience, self.early_stopping_min_delta
        if delta and patience is None:
            yield f"algo.early_stopping_min_delta={delta:g} needs early stopping. Type algo.early_stopping_patience=3"
        if self.best_by != "loss" and not self.watches_evaluations:
            yield f"algo.best_by={self.best_by} has no effect. Type algo.keep_best=true or algo.early_stopping_patience=3"
        if not self.watches_evaluations:
            return
        what = "algo.keep_best=true" if self.keep_best else f"algo.early_stopping_patience={patience}"
        if self.best_by != "loss":
            if measures_every is None:
                yield f"{what} algo.best_by={self.best_by} needs measurements during training. Type evaluate.every_steps=50"
        elif not has_evaluation_set:
            yield f"{what} needs an evaluation set. Type data.eval_fraction=0.05 or data.eval_path=FILE"
        elif eval_every_steps is None:
            yield f"{what} needs evaluations during training. Type algo.eval_every_steps=50"
