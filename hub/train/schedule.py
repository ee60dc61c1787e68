"""Learning-rate schedules by name: the learning rate of each step as a fraction of `algo.learning_rate`. Pure Python.

Steps count from 1 to `total`. The rate rises over `warmup` steps, n / warmup in step n, and reaches its peak, 1, in step
p = max(warmup, 1). Without warmup the first step has the peak. From there it decays by x = (n - p) / (total + 1 - p), the part
of the decay that is over. x is 0 in step p and would be 1 one step after the last, so that no step has a rate of 0:

    constant              1
    linear                1 - x
    polynomial            (1 - x) ** lr_power
    cosine                (1 + cos(pi x)) / 2
    cosine_with_restarts  (1 + cos(pi (lr_num_cycles x mod 1))) / 2
    inverse_sqrt          sqrt(p / n)
    warmup_stable_decay   1 before the last D = lr_decay_steps steps. In these y = (n - 1 - total + D) / D takes the place of x:
                          cosine, linear, or 1 - sqrt(y)

The cosine and its restarts are those of Loshchilov and Hutter (arXiv 1608.03983), in cycles of equal length. The inverse square
root is that of Vaswani et al. (arXiv 1706.03762, section 5.3). Warmup, stable, decay is that of Hu et al. (arXiv 2404.06395),
1 - sqrt that of arXiv 2405.18392.

`algo.min_lr_ratio` r raises a decay d to r + (1 - r) d. With `algo.warmup_start_ratio` u the rate of warmup is
u + (1 - u) (n - 1) / (warmup - 1).

Some names are those of transformers for the same: constant_with_warmup is constant; cosine_with_min_lr and
cosine_warmup_with_min_lr are cosine with `min_lr_ratio`. reduce_lr_on_plateau and greedy follow the held-out loss: `Adaptive`.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hub.config.schedule import ADAPTIVE, FLAT, WITH_FLOOR
from hub.config.schema import AlgoConfig

DEFAULT_WARMUP_RATIO = 0.03
DEFAULT_NUM_CYCLES = 2
DEFAULT_POWER = 2.0
DEFAULT_DECAY_RATIO = 0.1
DEFAULT_FACTOR = {"reduce_lr_on_plateau": 0.1, "greedy": 0.95}
DEFAULT_PATIENCE = 10
BETTER_BY = 1e-4
"""With reduce_lr_on_plateau a loss is better if it is lower by this fraction, as in torch. greedy's is absolute."""
GREEDY_BETTER_BY = 1e-6


def warmup_steps(cfg: AlgoConfig, total: int) -> int:
    """Return the number of steps over which the learning rate rises, at most `total`."""
    if cfg.warmup_steps is not None:
        return cfg.warmup_steps
    return round(total * (DEFAULT_WARMUP_RATIO if cfg.warmup_ratio is None else cfg.warmup_ratio))


def schedule_problems(cfg: AlgoConfig, total: int, because: str = "") -> Iterator[str]:
    """One line for each option of the schedule that does not fit the length of the run.

    Args:
        cfg: the options.
        total: number of steps.
        because: how `total` came about, after a colon. Empty: the number alone.
    """
    because = because or f" of {total} steps"
    if cfg.warmup_steps and cfg.warmup_steps >= total:
        yield (
            f"algo.warmup_steps={cfg.warmup_steps} is not shorter than the run{because}. "
            f"Type e.g. algo.warmup_steps={total // 10}"
        )
    elif cfg.lr_num_cycles is not None and cfg.lr_num_cycles > (most := _decay_steps(cfg, total)):
        yield (
            f"algo.lr_num_cycles={cfg.lr_num_cycles} does not fit the run{because}, {most} of them from the peak on, and a "
            f"cycle takes at least one. Type algo.lr_num_cycles={most} or less"
        )
    elif (cfg.lr_decay_steps or 0) > (most := _decay_steps(cfg, total)):
        yield (
            f"algo.lr_decay_steps={cfg.lr_decay_steps} does not fit the run{because}, {most} of them from the peak on. "
            f"Type algo.lr_decay_steps={most} or less"
        )


def rate_of_step(cfg: AlgoConfig, total: int) -> Callable[[int], float]:
    """Return the function from a step to its learning rate as a fraction of `algo.learning_rate`.

    Args:
        cfg: the options.
        total: number of steps.

    Returns:
        A function of 1 to `total`, whose values are above 0 and at most 1. An `Adaptive` depends on the losses that it sees.
    """
    warmup = warmup_steps(cfg, total)
    peak, length = max(1, warmup), _decay_steps(cfg, total)
    cycles = min(length, DEFAULT_NUM_CYCLES) if cfg.lr_num_cycles is None else cfg.lr_num_cycles
    power = DEFAULT_POWER if cfg.lr_power is None else cfg.lr_power
    if cfg.lr_scheduler in ADAPTIVE:
        return Adaptive(cfg, warmup)
    decays: dict[str, Callable[[int], float]] = {
        "linear": lambda after: 1 - after / length,
        "polynomial": lambda after: (1 - after / length) ** power,
        "cosine": lambda after: _cosine(after / length),
        # The remainder is that of whole numbers: rounding would put a restart at the end of the cycle before it.
        "cosine_with_restarts": lambda after: _cosine((after * cycles % length) / length),
        "inverse_sqrt": lambda after: math.sqrt(peak / (peak + after)),
        "warmup_stable_decay": _stable_decay(cfg, total, length),
        **dict.fromkeys(FLAT, lambda after: 1.0),
        **dict.fromkeys(WITH_FLOOR, lambda after: _cosine(after / length)),
    }
    decay, floor = decays[cfg.lr_scheduler], cfg.min_lr_ratio
    return lambda step: _warmup(step, peak, cfg.warmup_start_ratio) if step < peak else floor + (1 - floor) * decay(step - peak)


class Adaptive:
    """A rate that the held-out loss changes. All attributes are numbers or None, so that a checkpoint can hold them.

    After warmup the rate is constant. If more than `lr_patience` evaluations in a row were not better than the best so far, it
    is multiplied by `lr_factor`, down to `min_lr_ratio`. That is torch's ReduceLROnPlateau. greedy (arXiv 2512.14527) also
    divides by `lr_factor` after as many that were better, up to the peak.
    """

    def __init__(self, cfg: AlgoConfig, warmup: int) -> None:
        self.peak = max(1, warmup)
        self.start = cfg.warmup_start_ratio
        self.is_greedy = cfg.lr_scheduler == "greedy"
        self.factor = DEFAULT_FACTOR[cfg.lr_scheduler] if cfg.lr_factor is None else cfg.lr_factor
        self.patience = DEFAULT_PATIENCE if cfg.lr_patience is None else cfg.lr_patience
        self.floor = cfg.min_lr_ratio
        self.scale = 1.0
        self.best: float | None = None
        self.num_worse = self.num_better = 0

    def __call__(self, step: int) -> float:
        """The rate of a step."""
        return self.scale * (_warmup(step, self.peak, self.start) if step < self.peak else 1.0)

    def observe(self, loss: float) -> None:
        """Take an evaluation into account."""
        if not math.isfinite(loss):
            return
        least = math.inf if self.best is None else self.best
        if loss < (least - GREEDY_BETTER_BY if self.is_greedy else least * (1 - BETTER_BY)):
            self.best = loss
            self.num_better, self.num_worse = self.num_better + 1, 0
        else:
            self.num_better, self.num_worse = 0, self.num_worse + 1
        if self.num_worse > self.patience:
            self.scale, self.num_worse = max(self.scale * self.factor, self.floor), 0
        elif self.is_greedy and self.num_better > self.patience:
            self.scale, self.num_better = min(self.scale / self.factor, 1.0), 0

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what the losses did so far from the attributes at a checkpoint. The options stay those of this run."""
        self.scale, self.best = max(state["scale"], self.floor), state["best"]
        self.num_worse, self.num_better = state["num_worse"], state["num_better"]


def _warmup(step: int, peak: int, start: float | None) -> float:
    """The rate of a step before the one with the peak. torch also asks for that of step 0, which no step has."""
    return step / peak if start is None else start + (1 - start) * max(step - 1, 0) / max(peak - 1, 1)


def _cosine(part: float) -> float:
    return (1 + math.cos(math.pi * part)) / 2


def _stable_decay(cfg: AlgoConfig, total: int, most: int) -> Callable[[int], float]:
    """The decay in the last steps only, of the steps from the one with the peak on, of which there are `most`."""
    ratio = DEFAULT_DECAY_RATIO if cfg.lr_decay_ratio is None else cfg.lr_decay_ratio
    steps = min(most, max(1, round(total * ratio)) if cfg.lr_decay_steps is None else cfg.lr_decay_steps)
    shapes: dict[str, Callable[[float], float]] = {
        "cosine": _cosine,
        "linear": lambda part: 1 - part,
        "1-sqrt": lambda part: 1 - math.sqrt(part),
    }
    shape = shapes[cfg.lr_decay_type or "cosine"]
    return lambda after: shape(max(0, after - most + steps) / steps)


def _decay_steps(cfg: AlgoConfig, total: int) -> int:
    """Number of steps from the one with the peak to the last."""
    return total + 1 - max(1, warmup_steps(cfg, total))
