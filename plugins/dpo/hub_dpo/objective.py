"""The objectives: from the log-probabilities of a step's tokens to the loss of its pairs, or of its judged answers."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from hub.data.formats.preferences import DESIRABLE, PAIR, UNDESIRABLE
from hub.data.samples.sample import Group, Sample, Unit
from hub.errors import DataError, ModelError
from hub.recipe import Objective, Passes
from hub_dpo.config import PreferenceOptions
from hub_dpo.drift import moved
from hub_dpo.losses import Pairs, kto, pair_losses, rewards
from hub_dpo.references import References

Values = Sequence[Sequence[torch.Tensor]]
MISMATCHED = "mismatched"
"""Role of a prompt with the answer to another one, from which KTO estimates how far the model is from the reference."""

GOOD, BAD = (PAIR[0], DESIRABLE), (PAIR[1], UNDESIRABLE)


class _Compared(Objective):
    """What both objectives have: the references, and that the first step finds the model at them."""

    def __init__(self, algo: PreferenceOptions, references: References | None) -> None:
        """Create the objective.

        Args:
            algo: the options.
            references: of all samples. None: the loss takes none.
        """
        self.algo, self.references = algo, references

    def prepare(self, passes: Passes) -> None:
        if self.references is not None:
            self.references.prepare(passes)

    def finish(self, passes: Passes) -> None:
        if self.references is not None:
            self.references.check(passes)

    def ratio(self, sample: Sample, values: torch.Tensor) -> torch.Tensor:
        """The log-ratio of a sample to its reference, a scalar. Without a reference its log-probability."""
        return values.sum() - (self.references.of(sample) if self.references is not None else 0.0)

    def moved_per_token(self, units: Sequence[Sequence[Sample]], values: Values) -> dict[str, float]:
        """How far the model is from its reference on the answers: half the mean squared log-ratio of a token, in nats.

        To second order that is the KL divergence to the reference, if answers are the model's own (k2 of Schulman,
        "Approximating KL divergence", 2020). Empty without a reference.
        """
        if self.references is None:
            return {}
        answers = [(sample, value) for sample, value in _each(units, values) if sample.role != MISMATCHED]
        ratios = torch.cat([value - self.references.tokens_of(sample) for sample, value in answers])
        return {"kl_per_token": float(ratios.square().mean() / 2)}

    def check_start(self, units: Sequence[Sequence[Sample]], values: Values) -> None:
        """Check that the model as training begins has the log-probabilities of its reference.

        Raises:
            ModelError: it has not: it was not the same model, or not by the same arithmetic.
        """
        if self.references is None or not self.references.is_start:
            return
        found = moved([(sample, float(self.ratio(sample, value))) for sample, value in _each(units, values)])
        if (off := found.too_far(self.references.dtype)) and (sample := found.sample) is not None:
            raise ModelError(
                f"{sample.where}: before the first step the model must have the log-probabilities of its reference, but "
                f"{sample.role} is {off}. What was computed as reference is not this model. Remove the folder references in "
                "the cache (HUB_CACHE), and report it if it stays"
            )


class PairObjective(_Compared):
    """The mean over pairs of a loss of `losses.py`."""

    roles = PAIR

    def divisor(self, units: Sequence[Sequence[Sample]]) -> float:
        return len(units)

    def pairs(self, units: Sequence[Sequence[Sample]], values: Values) -> Pairs:
        """The log-probabilities of the step's answers."""
        sums = [torch.stack([unit[place].sum() for unit in values]) for place in (0, 1)]
        lengths = [sums[0].new_tensor([len(unit[place]) for unit in values]) for place in (0, 1)]
        known = [torch.zeros_like(each) for each in sums]
        if self.references is not None:
            known = [sums[0].new_tensor([self.references.of(samples[place]) for samples in units]) for place in (0, 1)]
        return Pairs(sums[0], sums[1], known[0], known[1], lengths[0], lengths[1])

    def loss(self, units: Sequence[Sequence[Sample]], values: Values) -> torch.Tensor:
        return pair_losses(self.pairs(units, values), self.algo).sum()

    def figures(self, units: Sequence[Sequence[Sample]], values: Values, is_start: bool) -> Mapping[str, float]:
        """Rewards, margin, accuracy, log-probabilities and lengths, as means over the pairs. Ties count half."""
        if is_start:
            self.check_start(units, values)
        pairs = self.pairs(units, values)
        chosen, rejected = rewards(pairs, self.algo)
        figures = {
            "reward_chosen": chosen,
            "reward_rejected": rejected,
            "margin": chosen - rejected,
            "accuracy": _wins(chosen - rejected),
            "likelier": _wins(pairs.chosen - pairs.rejected),
            "logp_chosen": pairs.chosen,
            "logp_rejected": pairs.rejected,
            "tokens_chosen": pairs.chosen_length,
            "tokens_rejected": pairs.rejected_length,
        }
        if self.references is not None:
            figures["log_ratio_chosen"] = pairs.ratio_chosen / pairs.chosen_length
            figures["log_ratio_rejected"] = pairs.ratio_rejected / pairs.rejected_length
        return {name: float(value.mean()) for name, value in figures.items()} | self.moved_per_token(units, values)


class KtoObjective(_Compared):
    """The mean over judged answers of KTO's loss. A pair is a good and a bad answer."""

    roles = None

    def __init__(self, algo: PreferenceOptions, references: References | None, longest: int) -> None:
        """Create the objective.

        Args:
            algo: the options.
            references: of all samples.
            longest: tokens of the longest sample of the data, which no mismatched one exceeds.
        """
        super().__init__(algo, references)
        self._longest = longest

    def completed(self, units: Sequence[Unit]) -> Sequence[Unit]:
        """Give each unit its prompt with an answer of the unit before it (of the last one for the first).

        Raises:
            DataError: a unit has no judged answer.
        """
        completed: list[Unit] = []
        for place, unit in enumerate(units):
            if unit.samples[-1].role == MISMATCHED:
                return units
            if any(sample.role not in (*GOOD, *BAD) for sample in unit.samples):
                raise DataError(
                    f"{unit.where}: this row says of no answer whether it is good. algo.loss=kto trains on rows with prompt, "
                    "completion and label, or on pairs. Type data.format=judged or preference"
                )
            other = units[place - 1]
            if len(units) == 1 or (mismatched := _mismatched(unit.samples[0], other.samples[0], self._longest)) is None:
                completed.append(unit)
            else:
                completed.append(Group((*unit.samples, mismatched), unit.where, getattr(unit, "format", "")))
        return completed

    def divisor(self, units: Sequence[Sequence[Sample]]) -> float:
        return sum(sample.role != MISMATCHED for samples in units for sample in samples)

    def _losses(self, units: Sequence[Sequence[Sample]], values: Values) -> tuple[torch.Tensor, ...]:
        """The loss, the log-ratio, the log-probability, the number of tokens and the judgement of each answer, and z."""
        judged = [(sample, value) for sample, value in _each(units, values) if sample.role != MISMATCHED]
        ratios = torch.stack([self.ratio(sample, value) for sample, value in judged])
        others = [self.ratio(sample, value) for sample, value in _each(units, values) if sample.role == MISMATCHED]
        is_good = torch.tensor([sample.role in GOOD for sample, _ in judged])
        losses, z = kto(ratios, is_good, torch.stack(others) if others else ratios[:0], self.algo)
        sums = torch.stack([value.sum() for _, value in judged])
        return losses, ratios, sums, ratios.new_tensor([len(value) for _, value in judged]), is_good, z

    def loss(self, units: Sequence[Sequence[Sample]], values: Values) -> torch.Tensor:
        return self._losses(units, values)[0].sum()

    def figures(self, units: Sequence[Sequence[Sample]], values: Values, is_start: bool) -> Mapping[str, float]:
        """Rewards, log-probabilities and lengths as means over the good and over the bad answers, and the estimate z."""
        if is_start:
            self.check_start(units, values)
        _, ratios, sums, lengths, is_good, z = self._losses(units, values)
        figures = {"kl": float(z)} | self.moved_per_token(units, values)
        for name, chosen in (("chosen", is_good), ("rejected", ~is_good)):
            if chosen.any():
                figures[f"reward_{name}"] = float(self.algo.strength * ratios[chosen].mean())
                figures[f"logp_{name}"] = float(sums[chosen].mean())
                figures[f"log_ratio_{name}"] = float((ratios / lengths)[chosen].mean())
                figures[f"tokens_{name}"] = float(lengths[chosen].mean())
        if is_good.any() and not is_good.all():
            figures["margin"] = figures["reward_chosen"] - figures["reward_rejected"]
        return figures


def _each(units: Sequence[Sequence[Sample]], values: Values) -> Iterator[tuple[Sample, torch.Tensor]]:
    """Each sample of a step, with the log-probabilities of its loss tokens."""
    for samples, of_unit in zip(units, values, strict=True):
        yield from zip(samples, of_unit, strict=True)


def _wins(margins: torch.Tensor) -> torch.Tensor:
    """1 where the first answer wins, 1/2 where none does."""
    return (margins > 0).double() + (margins == 0).double() / 2


def _mismatched(asked: Sample, answered: Sample, longest: int) -> Sample | None:
    """The prompt of one sample with the answer of another one. None: there is no room for a token of it."""
    start = int(np.argmax(asked.loss_mask))
    begin = int(np.argmax(answered.loss_mask))
    answer = answered.input_ids[begin:][: max(0, longest - start)]
    mask = answered.loss_mask[begin:][: len(answer)]
    if not start or not len(answer) or not mask.any():
        return None
    ids = np.concatenate([asked.input_ids[:start], answer])
    mask = np.concatenate([np.zeros(start, np.bool_), mask])
    return Sample(ids, mask, asked.where, MISMATCHED)
