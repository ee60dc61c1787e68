"""Which options to change, and by how much: computed from the options and the curves of the run. Nothing here imports torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hub.train.curves import Curves
from hub.train.findings import Change


@dataclass(frozen=True)
class Remedies:
    """Changes of the options that a run's algorithm has. Each method gives none where there is nothing to change."""

    curves: Curves
    algo: Mapping[str, Any]
    """The options of the algorithm by name."""

    num_steps: int | None
    batch_size: int | None
    num_units: int | None

    @property
    def total(self) -> float:
        return self.num_steps or float(self.curves.steps[-1])

    def rate(self, factor: float) -> list[Change]:
        rate = self.algo.get("learning_rate")
        if not isinstance(rate, int | float):
            return []
        way = "lower" if factor < 1 else "higher"
        times = f"{1 / factor:.2g}" if factor < 1 else f"{factor:g}"
        return [Change("algo.learning_rate", short(rate * factor, 2), f"{times} times {way} than {short(rate, 3)}")]

    def shorter(self, best_step: float) -> list[Change]:
        """End where the held-out loss was lowest."""
        if not best_step:
            return []
        why = f"the held-out loss was lowest after step {best_step:.0f} of {self.total:.0f}"
        passes = self.curves.epoch_at(best_step)
        return [change] if (change := self.length(passes, why, best_step)) else []

    def length(self, passes: float | None, why: str, step: float | None = None) -> Change | None:
        if (max_steps := self.algo.get("max_steps")) is not None:
            now = float(self.curves.epochs[-1])
            step = step if step is not None else passes * max_steps / now if passes and now > 0 else None
            return Change("algo.max_steps", f"{max(1, step):.0f}", why) if step and step < max_steps else None
        epochs = self.algo.get("num_epochs")
        if not isinstance(epochs, int | float) or passes is None or float(f"{passes:.2g}") >= epochs:
            return None
        return Change("algo.num_epochs", f"{max(0.01, passes):.2g}", why)

    def longer(self) -> list[Change]:
        if (max_steps := self.algo.get("max_steps")) is not None:
            return [Change("algo.max_steps", f"{2 * max_steps}", "twice as many")]
        epochs = self.algo.get("num_epochs")
        return [Change("algo.num_epochs", f"{2 * epochs:g}", "twice as many")] if isinstance(epochs, int | float) else []

    def keep_best(self) -> list[Change]:
        if self.algo.get("keep_best") is False:
            return [Change("algo.keep_best", "true", "the model of the lowest held-out loss")]
        return []

    def regularize(self) -> list[Change]:
        """More dropout and weight decay, as far as the algorithm has them."""
        changes = []
        if isinstance(dropout := self.algo.get("lora_dropout"), int | float) and dropout < 0.2:
            changes.append(Change("algo.lora_dropout", f"{min(0.2, max(0.05, 2 * dropout)):g}"))
        if isinstance(decay := self.algo.get("weight_decay"), int | float) and decay < 0.3:
            changes.append(Change("algo.weight_decay", f"{min(0.3, max(0.1, 2 * decay)):g}"))
        return changes

    def more_capacity(self) -> list[Change]:
        rank = self.algo.get("lora_r")
        if not isinstance(rank, int) or rank >= 256:
            return []
        alpha = self.algo.get("lora_alpha")
        same = f"with algo.lora_alpha={2 * alpha:g}" if isinstance(alpha, int | float) else ""
        return [Change("algo.lora_r", f"{2 * rank}", same)]

    def hold_chosen(self) -> list[Change]:
        """Hold the chosen answers up, as far as the algorithm learns from preferences."""
        changes = []
        if "sft_weight" in self.algo and not self.algo["sft_weight"]:
            changes.append(Change("algo.sft_weight", "1", "adds the likelihood of the chosen answers to what is learned"))
        if "beta" in self.algo:
            beta = self.algo["beta"] or 0.1
            changes.append(
                Change("algo.beta", short(3 * beta, 2), f"holds the model closer to the reference than {short(beta, 2)}")
            )
        return changes

    def batch(self, factor: float) -> Change | None:
        if self.batch_size is None or "effective_batch_size" not in self.algo:
            return None
        size = max(1, round(self.batch_size * factor))
        if self.num_units is not None:
            size = min(size, self.num_units)
        why = f"{self.batch_size} now" + ("; more steps from the same rows" if factor < 1 else "")
        return Change("algo.effective_batch_size", str(size), why) if size != self.batch_size else None

    def more_rows(self) -> str:
        return f"More rows than these {self.num_units:,} help most" if self.num_units else "More rows help most"

    def afterwards(self) -> tuple[str, ...]:
        return ("scale", "average") if "lora_alpha" in self.algo else ("average",)


def short(value: float, digits: int) -> str:
    """A number with few digits, as one types it: 3e-5."""
    mantissa, _, exponent = f"{value:.{digits}g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa
