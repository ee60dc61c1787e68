"""What is wrong with a run, read from its curves: each finding has its evidence and the options to change. No torch.

The rules are careful: a finding must stand out of the noise of the curves by several standard errors. A run on which
nothing is found may still be a bad one.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from hub.train.curves import SIGMA_OF_MAD, Curves, Level, Numbers, number, read_curves
from hub.train.findings import Change, Finding
from hub.train.remedies import Remedies

FEWEST_STEPS = 20
"""Logged steps below which nothing is said about the curve of the training loss."""

NEVER_BELOW = 1e-12

MOST_LOST = -0.3
"""Mean log-ratio to the reference of a chosen answer, in nats a token, below which it is said to have collapsed."""


def diagnose(
    lines: Iterable[Mapping[str, Any]],
    algo: Mapping[str, Any],
    num_steps: int | None = None,
    batch_size: int | None = None,
    num_units: int | None = None,
    streaming: bool = False,
) -> list[Finding]:
    """Read the curves of a run.

    Args:
        lines: of its metrics.jsonl.
        algo: the options of its algorithm by name. Only options that are there are named.
        num_steps: optimizer steps of the whole run. None: not known.
        batch_size: samples per step. None: not known.
        num_units: samples of one pass over the data. None: not known.
        streaming: whether the data was read as a stream, in which topics may come one after the other.

    Returns:
        The findings, the gravest first. Empty: none, or too little to tell.
    """
    logged = list(lines)
    curves = read_curves(logged)
    remedies = Remedies(curves, algo, num_steps, batch_size, num_units)
    collapsed = chosen_collapsed(logged, remedies)
    return [*([collapsed] if collapsed else []), *_of_curves(_Run(curves, remedies, streaming), num_steps)]


def chosen_collapsed(lines: Sequence[Mapping[str, Any]], options: Remedies) -> Finding | None:
    """Of preferences: the chosen answers became far less likely than under the reference, and the rejected ones even less.

    The margin grows all the same, and the probability goes to answers that are neither.

    Args:
        lines: of metrics.jsonl.
        options: of the run.
    """
    ratios = np.array([number(line, "log_ratio_chosen") for line in lines], dtype=np.float64)
    ratios = ratios[np.isfinite(ratios)]
    if len(ratios) < 3:
        return None
    last = ratios[-max(3, len(ratios) // 10) :]
    mean, error = float(last.mean()), float(last.std(ddof=1)) / math.sqrt(len(last))
    if mean + 3 * error > MOST_LOST:
        return None
    evidence = (
        f"at the end a token of a chosen answer has {math.exp(mean):.0%} of its probability under the reference "
        f"({mean:.3g} nats a token)"
    )
    advice = "The margin grows as long as the rejected answers lose more; the probability goes to answers that are neither"
    return Finding("chosen_collapsed", evidence, tuple([*options.hold_chosen(), *options.rate(1 / 3)]), advice)


def _of_curves(run: "_Run", num_steps: int | None) -> list[Finding]:
    curves = run.curves
    if len(curves.losses) < 3:
        return [found] if (found := run.too_high_by_skips()) else []
    if float(curves.losses.min()) < 0 or (len(curves.held_out) and float(curves.held_out.min()) < 0):
        return []  # no loss of tokens: an objective of its own, whose level says nothing
    if found := run.rate_too_high():
        return [found]
    found_ones = [one for one in (run.overfitting(), run.memorized()) if one]
    if found_ones or (num_steps is not None and curves.steps[-1] < num_steps):
        return found_ones  # of a run that has not ended nobody can say that it learned too little
    return [one for one in (run.rate_too_low() or run.batch_too_small() or run.underfitting(),) if one]


@dataclass(frozen=True)
class _Run:
    """The curves and the options of a run, with one method for each kind of finding."""

    curves: Curves
    options: Remedies
    streaming: bool

    def rate_too_high(self) -> Finding | None:
        """Skipped steps, a loss above its start or far above its lowest, jumps that last, growing gradients."""
        rules = (self._too_high_by_loss, self._too_high_by_jumps, self._too_high_by_norms, self._too_high_by_constant)
        return self.too_high_by_skips() or next((found for rule in rules if (found := rule())), None)

    def too_high_by_skips(self) -> Finding | None:
        """Several steps gave NaN or infinity. A single one may come from its rows."""
        skipped, logged = self.curves.num_skipped, len(self.curves.losses)
        if skipped < 2 or skipped < 0.01 * logged:
            return None
        return self._lower(10, f"{skipped} of {skipped + logged} logged steps gave NaN or infinity and were skipped")

    def _too_high_by_loss(self) -> Finding | None:
        curves = self.curves
        if len(curves.losses) < FEWEST_STEPS or self.streaming:
            return None
        first, end, size = curves.losses[:3], curves.end, curves.window
        was_better = len(curves.held_out) >= 2 and curves.held_out[-1] < 0.95 * curves.held_out[0]
        least = max(1.1 * float(first.max()), float(first.max()) + 0.1)
        # Of a loss that only scatters the first three are among the lowest tenth once in 1000 runs.
        if not was_better and float(np.mean(curves.losses[len(curves.losses) // 2 :] > least)) >= 0.9:
            return self._lower(10, f"the training loss ended at {end}, above its start of {first[0]:.4g}")
        means = np.convolve(curves.losses, np.ones(size) / size, mode="valid")
        lowest = float(means.min())
        if end.mean - lowest > max(8 * end.error, 0.15 * curves.start.mean, 0.2):
            step = int(curves.steps[int(means.argmin()) + size - 1])
            return self._lower(3, f"the training loss had come down to {lowest:.4g} by step {step} and ended at {end}")
        return None

    def _too_high_by_jumps(self) -> Finding | None:
        """The loss jumped and stayed up for some steps, more than once. A single odd row does not do that."""
        losses, behind = self.curves.losses, 20
        if len(losses) < behind + 3:
            return None
        windows = sliding_window_view(losses, behind)[:-3]
        before = np.median(windows, axis=1)
        after = np.median(sliding_window_view(losses[behind:], 3), axis=1)
        # The scatter around the median of each window: it is larger where the loss is.
        scatter = SIGMA_OF_MAD * np.median(np.abs(windows - before[:, None]), axis=1)
        above = after > np.maximum(before + 6 * np.maximum(scatter, self.curves.noise), np.maximum(1.3 * before, before + 0.1))
        steps: list[int] = []
        for place in np.flatnonzero(above).tolist():
            if not steps or place - steps[-1] > 10:
                steps.append(place)
        if len(steps) < 2 or self.streaming:
            return None
        most = max(steps, key=lambda index: float(after[index] - before[index]))
        step = int(self.curves.steps[most + behind])
        jump = f"from {before[most]:.4g} to {after[most]:.4g} at step {step}"
        return self._lower(3, f"the training loss jumped and stayed up {len(steps)} times, the highest time {jump}", jumps=True)

    def _too_high_by_norms(self) -> Finding | None:
        """Gradients grow while the loss does not fall."""
        curves, count = self.curves, len(self.curves.norms)
        if count < 2 * FEWEST_STEPS:
            return None
        second, last = slice(count // 4, count // 2), slice(3 * count // 4, count)
        norms = [float(np.median(curves.norms[part])) for part in (second, last)]
        before, after = curves.level(count // 4, count // 2), curves.level(3 * count // 4, count)
        at_start = float(np.median(curves.norms[: max(5, count // 20)]))
        if 0 <= norms[1] < 0.02 * at_start and curves.end.mean > max(0.3 * curves.start.mean, 0.5):
            vanished = f"gradient norms fell from {at_start:.2g} to {norms[1]:.2g}, but the training loss is still {curves.end}"
            return self._lower(10, f"{vanished}: large steps have led to where nothing is learned")
        if not norms[1] > 5 * norms[0] > 0 or before.mean - after.mean > -2 * (before.error + after.error):
            return None
        limit = self.options.algo.get("max_grad_norm")
        clipped = f", {np.mean(curves.norms[last] > limit):.0%} of them clipped" if limit else ""
        grown = f"gradient norms grew from {norms[0]:.2g} to {norms[1]:.2g}{clipped}"
        return self._lower(3, f"{grown}, and the training loss rose from {before} to {after}")

    def _too_high_by_constant(self) -> Finding | None:
        """The loss is the same number in each step: the model answers alike whatever it reads."""
        losses = self.curves.losses
        later = losses[len(losses) // 4 :]
        if len(losses) < FEWEST_STEPS or later.max() - later.min() > 1e-4 * later.mean() or later.mean() < 0.5:
            return None
        if abs(losses[0] - later[-1]) < 0.01 * later[-1]:
            return None  # one row again and again, and nothing is learned
        step = int(self.curves.steps[-len(later)])
        return self._lower(
            10, f"the training loss is {later[-1]:.4g} in every step from {step} on: the model no longer reads its input"
        )

    def _lower(self, factor: int, evidence: str, jumps: bool = False) -> Finding:
        changes = [*self.options.rate(1 / factor)]
        if "max_grad_norm" in self.options.algo and (self.options.algo["max_grad_norm"] or 2) > 1:
            changes.append(Change("algo.max_grad_norm", "1", "clips the gradients"))
        if jumps and (size := self.options.batch(4)):
            changes.append(size)
        return Finding("rate_too_high", evidence, tuple(changes))

    def overfitting(self) -> Finding | None:
        """The training loss fell while the held-out loss rose."""
        curves, held_out = self.curves, self.curves.held_out
        if len(held_out) < 2 or len(curves.losses) < 6:
            return None
        best = int(held_out.argmin())
        lowest, last = float(held_out[best]), float(held_out[-1])
        rising = held_out[best + 1 :] > lowest + max(0.01 * lowest, 2 * curves.held_out_noise)
        num_rising = len(rising) - (int(np.flatnonzero(~rising)[-1]) + 1 if not rising.all() else 0)
        least = 0.02 if num_rising >= 2 else 0.05
        if num_rising < 1 or last - lowest <= max(least * lowest, 0.01, 3 * curves.held_out_noise):
            return None
        best_step = float(curves.held_out_steps[best])
        before, after = curves.level_until(best_step), curves.end
        if before.mean - after.mean <= 2 * math.hypot(before.error, after.error):
            return None
        when = f"after step {best_step:.0f} of {self.options.total:.0f}" if best_step else "before training"
        evidence = (
            f"the held-out loss was lowest {when} ({lowest:.4g}) and rose to {last:.4g} ({num_rising} "
            f"evaluation{'s' if num_rising > 1 else ''} above it), while the training loss fell from {before} to {after}. "
            f"The gap between the two grew from {lowest - before.mean:.3g} to {last - after.mean:.3g} ± {after.error:.1g}"
        )
        advice = "" if best_step else "Check that the held-out rows are of the same kind as the training rows"
        options = self.options
        changes = [*options.shorter(best_step), *options.keep_best(), *options.rate(1 / 2), *options.regularize()]
        return Finding("overfitting", evidence, tuple(changes), advice or options.more_rows(), options.afterwards())

    def memorized(self) -> Finding | None:
        """After more than one pass the loss of rows that were seen is far below that of rows that were not."""
        curves, end = self.curves, self.curves.end
        passes = float(curves.epochs[-1])
        if not passes > 1.5 or len(curves.losses) < 6:
            return None
        if len(curves.held_out) >= 2:
            unseen, of = float(curves.held_out[-1]), "the held-out loss is"
            gap_before = float(curves.held_out[0]) - curves.start.mean
            is_far = end.mean < 0.5 * unseen and unseen - end.mean - max(0.0, gap_before) > max(0.5, 6 * end.error)
        else:
            first = int(np.searchsorted(curves.epochs, 1.0, side="right"))
            level = curves.level(max(0, first - max(3, first // 5)), first) if first else curves.start
            unseen, of = level.mean, "on rows not seen before, at the end of the first pass, it was"
            is_far = end.mean < 0.1 and end.mean < 0.1 * unseen and unseen > 0.5
        if not is_far:
            return None
        evidence = f"after {passes:.3g} passes over the same rows the training loss is {end}, {of} {unseen:.4g}"
        fewer = max(1.0, float(f"{passes / 3:.1g}"))
        options = self.options
        changes = [options.length(fewer, "each row is seen less often"), *options.rate(1 / 2), *options.regularize()]
        return Finding("memorized", evidence, tuple(filter(None, changes)), options.more_rows(), options.afterwards())

    def rate_too_low(self) -> Finding | None:
        """The loss is where it was."""
        curves, start, end = self.curves, self.curves.start, self.curves.end
        if len(curves.losses) < FEWEST_STEPS or start.mean < 0.3:
            return None
        error, fall = math.hypot(start.error, end.error), start.mean - end.mean
        if len(curves.held_out) >= 2:
            first, last = float(curves.held_out[0]), float(curves.held_out[-1])
            if float(np.abs(curves.held_out - first).max()) > 0.005 * first or abs(fall) > max(0.01 * start.mean, 3 * error):
                return None
            evidence = f"the held-out loss is {last:.4g} after {curves.steps[-1]:.0f} steps, and was {first:.4g} before them"
        else:
            half = len(curves.losses) // 2
            first_half, second_half = curves.level(0, half), curves.level(half, len(curves.losses))
            fall, error = first_half.mean - second_half.mean, math.hypot(first_half.error, second_half.error)
            if error > 0.005 * start.mean or abs(fall) > max(0.002 * start.mean, 1.5 * error):
                return None
            evidence = f"the training loss is {end} after {curves.steps[-1]:.0f} steps, and was {start} in the first ones"
        advice = "If the model knew this data already, all is well"
        return Finding("rate_too_low", evidence, tuple([*self.options.rate(10), *self.options.longer()]), advice)

    def batch_too_small(self) -> Finding | None:
        """The held-out loss goes up and down by more than it falls: steps are mostly noise."""
        curves, size = self.curves, self.options.batch_size
        if size is None or size > 8 or len(curves.losses) < 2 * FEWEST_STEPS or len(curves.held_out) < 7:
            return None
        later = curves.held_out[len(curves.held_out) // 3 :]
        turns = np.diff(later)
        fall = float(later[: len(later) // 2].mean() - later[len(later) // 2 :].mean())
        typical = float(np.median(np.abs(turns)))
        rises = float(np.mean(turns > 0.5 * typical))
        if typical < 0.02 * float(later.mean()) or fall > typical or not 0.25 <= rises <= 0.75:
            return None
        if curves.noise < 0.1 * float(np.median(curves.losses)):
            return None
        evidence = (
            f"the loss of single steps scatters by ±{curves.noise:.2g} around its trend. From one evaluation to the next the "
            f"held-out loss goes up or down by {typical:.2g}, over the last {len(later)} of them it fell by {fall:.2g}"
        )
        changes = [self.options.batch(8 if size <= 2 else 4), *self.options.rate(1 / 3)]
        return Finding("batch_too_small", evidence, tuple(filter(None, changes)))

    def underfitting(self) -> Finding | None:
        """Little has been learned, and the loss was still falling as fast as at the beginning."""
        curves, start, end = self.curves, self.curves.start, self.curves.end
        if len(curves.losses) < FEWEST_STEPS or end.mean < 0.7 * start.mean:
            return None
        first, last = self._falls()
        total, has_held_out = start.mean - end.mean, len(curves.held_out) >= 2
        is_falling = last.mean > max(4 * last.error, 0.2 * total) and total > 0.01 * start.mean
        if not is_falling or last.mean - last.error < 0.6 * (first.mean + first.error):
            return None
        lowest = float(curves.held_out.min(initial=math.inf)) + 2 * curves.held_out_noise
        if has_held_out and not 0.7 * curves.held_out[0] <= curves.held_out[-1] <= lowest:
            return None
        if len(curves.held_out) >= 4:
            half = curves.steps[int(np.searchsorted(self._way(), 0.5))]
            place = int(np.searchsorted(curves.held_out_steps, half, side="right")) - 1
            if curves.held_out[place] - curves.held_out[-1] < 0.4 * (curves.held_out[0] - curves.held_out[-1]):
                return None
        held_out = f" (held-out: from {curves.held_out[0]:.4g} to {curves.held_out[-1]:.4g})" if has_held_out else ""
        evidence = (
            f"the training loss came down from {start} to {end} only{held_out}, and was still falling: the last third of the "
            f"learning (by the sum of learning rates) brought {min(last.mean / total, 1):.0%} of that"
        )
        changes = [*self.options.rate(3), *self.options.longer(), *self.options.more_capacity(), self.options.batch(0.25)]
        return Finding("underfitting", evidence, tuple(filter(None, changes)))

    def _way(self) -> Numbers:
        """The sum of the learning rates up to each step, as a part of that of all. Empty: they are not known, or all 0.

        Far from its minimum a loss falls in proportion to that sum, not to the number of steps.
        """
        way = np.cumsum(np.nan_to_num(self.curves.rates))
        return way / way[-1] if way[-1] > 0 else way[:0]

    def _falls(self) -> tuple[Level, Level]:
        """By how much the training loss falls over the first and over the last third of `_way`, each with its standard error.

        Of the last third only the last pass over the data counts: from one pass to the next the loss also falls because rows
        are known.
        """
        curves, way = self.curves, self._way()
        in_last_pass = ~(curves.epochs <= np.ceil(curves.epochs[-1]) - 1)  # where the passes are not known: all
        chosen = (way > 2 / 3) & in_last_pass if len(way) else np.zeros(0, dtype=np.bool_)
        if chosen.sum() < 8 or way[chosen][-1] - way[chosen][0] < 0.2:
            return Level(0.0, math.inf), Level(0.0, math.inf)
        x, y, third = way[chosen], curves.losses[chosen], int(np.searchsorted(way, 1 / 3))
        slope, _ = np.polyfit(x, y, 1)
        last = Level(-float(slope) / 3, curves.noise / (3 * float(x.std()) * math.sqrt(len(x)) + NEVER_BELOW))
        width = max(2, curves.window // 2)
        before, after = curves.losses[:3], curves.losses[max(0, third - width) : third + width + 1]
        error = curves.noise * math.sqrt(1 / len(before) + 1 / len(after))
        return Level(float(before.mean() - after.mean()), error), last
