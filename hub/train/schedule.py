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

The cosine and its restarts are those of Loshchilov and Hutter (arXiv 1608.03983), in cycles of equal length. The inverse square
root is that of Vaswani et al. (arXiv 1706.03762, section 5.3).

`algo.min_lr_ratio` r raises a decay d to r + (1 - r) d.
"""

import math
from collections.abc import Callable, Iterator

from hub.config.schema import AlgoConfig

DEFAULT_WARMUP_RATIO = 0.03
DEFAULT_NUM_CYCLES = 2
DEFAULT_POWER = 2.0


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


def rate_of_step(cfg: AlgoConfig, total: int) -> Callable[[int], float]:
    """Return the function from a step to its learning rate as a fraction of `algo.learning_rate`.

    Args:
        cfg: the options.
        total: number of steps.

    Returns:
        A function of 1 to `total`, whose values are above 0 and at most 1.
    """
    warmup = warmup_steps(cfg, total)
    peak, length = max(1, warmup), _decay_steps(cfg, total)
    cycles = min(length, DEFAULT_NUM_CYCLES) if cfg.lr_num_cycles is None else cfg.lr_num_cycles
    power = DEFAULT_POWER if cfg.lr_power is None else cfg.lr_power
    decays: dict[str, Callable[[int], float]] = {
        "constant": lambda after: 1.0,
        "linear": lambda after: 1 - after / length,
        "polynomial": lambda after: (1 - after / length) ** power,
        "cosine": lambda after: (1 + math.cos(math.pi * after / length)) / 2,
        # The remainder is that of whole numbers: rounding would put a restart at the end of the cycle before it.
        "cosine_with_restarts": lambda after: (1 + math.cos(math.pi * (after * cycles % length) / length)) / 2,
        "inverse_sqrt": lambda after: math.sqrt(peak / (peak + after)),
    }
    decay, floor = decays[cfg.lr_scheduler], cfg.min_lr_ratio
    return lambda step: step / peak if step < peak else floor + (1 - floor) * decay(step - peak)


def _decay_steps(cfg: AlgoConfig, total: int) -> int:
    """Number of steps from the one with the peak to the last."""
    return total + 1 - max(1, warmup_steps(cfg, total))
