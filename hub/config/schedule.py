"""Options of the learning rate, and the rules between them. `hub/train/schedule.py` has the formulas."""

from collections.abc import Iterator
from dataclasses import dataclass

from hub.config.option import option

FLAT = ("constant", "constant_with_warmup")
"""Schedules that do not decay."""
WITH_FLOOR = ("cosine_with_min_lr", "cosine_warmup_with_min_lr")
"""Cosines that must have `min_lr_ratio`. They are names of transformers."""
ADAPTIVE = ("reduce_lr_on_plateau", "greedy")
"""Schedules that follow the held-out loss."""
SCHEDULES = (
    "linear",
    "cosine",
    "constant",
    "polynomial",
    "inverse_sqrt",
    "cosine_with_restarts",
    "warmup_stable_decay",
    "constant_with_warmup",
    *WITH_FLOOR,
    *ADAPTIVE,
)
BELONGS_TO = {
    "lr_num_cycles": ("cosine_with_restarts",),
    "lr_power": ("polynomial",),
    "lr_decay_steps": ("warmup_stable_decay",),
    "lr_decay_ratio": ("warmup_stable_decay",),
    "lr_decay_type": ("warmup_stable_decay",),
    "lr_factor": ADAPTIVE,
    "lr_patience": ADAPTIVE,
}
"""Option -> the schedules that have it."""


@dataclass(kw_only=True)
class ScheduleOptions:
    """Options of the learning rate."""

    learning_rate: float = option(1e-5, gt=0)
    """Peak learning rate, reached after warmup."""

    lr_scheduler: str = option("cosine", choices=SCHEDULES)
    """Decay of the learning rate after warmup. The formulas: docs/runs.md."""

    warmup_steps: int | None = option(None, ge=0)
    """Steps over which the learning rate rises to its peak. null: see `warmup_ratio`."""

    warmup_ratio: float | None = option(None, ge=0, le=1)
    """Warmup as a fraction of all steps. null: 0.03, unless `warmup_steps` is set. Set one of the two."""

    warmup_start_ratio: float | None = option(None, gt=0, le=1)
    """Learning rate of the first step of warmup, as a fraction of `learning_rate`. null: one part of as many as warmup has
    steps."""

    min_lr_ratio: float = option(0.0, ge=0, lt=1)
    """Where the decay of the learning rate ends, as a fraction of `learning_rate`. Not with lr_scheduler=constant."""

    lr_num_cycles: int | None = option(None, ge=1)
    """With lr_scheduler=cosine_with_restarts: number of cosine decays of equal length, each from the peak. null: 2."""

    lr_power: float | None = option(None, gt=0)
    """With lr_scheduler=polynomial: the exponent. null: 2. 1 is linear."""

    lr_decay_steps: int | None = option(None, ge=1)
    """With lr_scheduler=warmup_stable_decay: number of last steps in which the learning rate decays. null: see
    `lr_decay_ratio`."""

    lr_decay_ratio: float | None = option(None, gt=0, le=1)
    """The decay of warmup_stable_decay as a fraction of all steps. null: 0.1, unless `lr_decay_steps` is set."""

    lr_decay_type: str | None = option(None, choices=("cosine", "linear", "1-sqrt"))
    """The shape of the decay of warmup_stable_decay. null: cosine."""

    lr_factor: float | None = option(None, gt=0, lt=1)
    """With lr_scheduler=reduce_lr_on_plateau or greedy: what the learning rate is multiplied by. null: 0.1, or 0.95 with
    greedy."""

    lr_patience: int | None = option(None, ge=0)
    """With lr_scheduler=reduce_lr_on_plateau or greedy: evaluations in a row without a better loss that change nothing. null:
    10."""

    def schedule_problems(self, max_steps: int | None, eval_every_steps: int | None) -> Iterator[str]:
        """One line for each clash of these options.

        Args:
            max_steps: number of steps of the run, if it is an option.
            eval_every_steps: steps between evaluations. None: there are none during training.
        """
        name = self.lr_scheduler
        for first, second in (("warmup_steps", "warmup_ratio"), ("lr_decay_steps", "lr_decay_ratio")):
            if getattr(self, first) is not None and getattr(self, second) is not None:
                yield f"algo.{first} and algo.{second} are both set. Set one of them, the other to null."
        for other, schedules in BELONGS_TO.items():
            if (value := getattr(self, other)) is not None and name not in schedules:
                shown = f"{value:g}" if isinstance(value, float) else value
                yield (
                    f"algo.{other}={shown} needs algo.lr_scheduler={' or '.join(schedules)}, but it is {name}. "
                    f"Type that, or leave {other} out"
                )
        if self.warmup_start_ratio is not None and 0 in (self.warmup_steps, self.warmup_ratio):
            yield (
                f"algo.warmup_start_ratio={self.warmup_start_ratio:g} is where warmup begins, but there is none. "
                "Type algo.warmup_steps=N, or leave warmup_start_ratio out"
            )
        if max_steps is not None:
            yield from self._length_problems(max_steps)
        if self.min_lr_ratio and name in FLAT:
            yield (
                f"algo.min_lr_ratio={self.min_lr_ratio:g} is where the learning rate decays to, but algo.lr_scheduler={name} "
                "does not decay. Type algo.lr_scheduler=cosine, or leave min_lr_ratio out"
            )
        if not self.min_lr_ratio and name in WITH_FLOOR:
            yield f"algo.lr_scheduler={name} needs algo.min_lr_ratio above 0. Type e.g. algo.min_lr_ratio=0.1"
        if name in ADAPTIVE and eval_every_steps is None:
            yield (
                f"algo.lr_scheduler={name} follows the held-out loss, but no evaluation is due during training. "
                "Type e.g. algo.eval_every_steps=50 data.eval_fraction=0.05"
            )

    def _length_problems(self, max_steps: int) -> Iterator[str]:
        if self.warmup_steps is not None and self.warmup_steps >= max_steps:
            yield (
                f"algo.warmup_steps={self.warmup_steps} is not shorter than the run: algo.max_steps={max_steps}. "
                f"Type e.g. algo.warmup_steps={max_steps // 10}"
            )
        if self.lr_scheduler == "cosine_with_restarts" and (self.lr_num_cycles or 0) > max_steps:
            yield (
                f"algo.lr_num_cycles={self.lr_num_cycles} is above algo.max_steps={max_steps}: a cycle takes at least one "
                f"step. Type algo.lr_num_cycles={max_steps} or less"
            )
