"""The losses of preferences, each a formula of the log-probabilities of whole answers.

For a prompt x with a chosen answer y_w and a rejected one y_l, in nats: w = log pi(y_w | x) and l = log pi(y_l | x) are sums
over the tokens of an answer, its end-of-turn token included, n_w and n_l their numbers, and W, L the same sums under the
reference.
With h = (w - W) - (l - L), b = beta, e = label_smoothing, and s the logistic function:

dpo       -(1 - e) log s(b h) - e log s(-b h)
          Rafailov et al., arXiv 2305.18290, equation 7. With e above 0: conservative DPO, Mitchell, ericmitchell.ai/cdpo.pdf,
          equation 3
robust    (-(1 - e) log s(b h) + e log s(-b h)) / (1 - 2 e)
          Chowdhury et al., arXiv 2403.00409
ipo       ((w - W) / n_w - (l - L) / n_l - 1 / (2 b))^2
          Azar et al., arXiv 2310.12036, equation 17, with means per token as its authors use it
hinge     max(0, 1 - b h)
          Zhao et al., arXiv 2305.10425 (SLiC); Liu et al., arXiv 2309.06657 (RSO)
exo       KL((s(b h), s(-b h)) || (1 - e, e))
          Ji et al., arXiv 2402.00856, equation 16
nca       -log s(b (w - W)) - log s(-b (w - W)) / 2 - log s(-b (l - L)) / 2
          Chen et al., arXiv 2402.05369
sppo      (w - W - 1 / (2 b))^2 + (l - L + 1 / (2 b))^2
          Wu et al., arXiv 2405.00675, equation 4.7 with certain wins
apo_zero  1 - s(b (w - W)) + s(b (l - L))
          D'Oosterlinck et al., arXiv 2408.06266, equation 7
apo_down  s(b (w - W)) + 1 - s(b h)
          equation 8 there
simpo     -log s(b (w / n_w - l / n_l) - gamma)
          Meng et al., arXiv 2405.14734, equation 6
orpo      -w / n_w - b log s(logit(w / n_w) - logit(l / n_l)), logit(m) = m - log(1 - exp m)
          Hong et al., arXiv 2403.07691, equations 6 and 7
cpo       -log s(b (w - l))
          Xu et al., arXiv 2401.08417, equation 3
kto       for each answer alone, see `kto`
          Ethayarajh et al., arXiv 2402.01306, equation 7

Equation numbers are those that the authors' code (dpo, ipo) and TRL 1.16 (ipo, exo, sppo, apo, orpo, cpo, kto) cite. Versions
of a paper may number differently. robust, hinge and nca were compared with TRL's code.

With length_normalized, w - W and l - L in h are means per token. sft_weight adds -w / n_w times it (Pang et al., arXiv
2404.19733, equation 1).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from hub_dpo.config import PreferenceOptions

Tensor = torch.Tensor


@dataclass(frozen=True)
class Pairs:
    """Log-probabilities of the answers of n pairs, each (n,) float64 in nats, and their numbers of tokens, (n,)."""

    chosen: Tensor
    rejected: Tensor
    chosen_reference: Tensor
    """Zeros without a reference."""

    rejected_reference: Tensor
    chosen_length: Tensor
    rejected_length: Tensor

    @property
    def ratio_chosen(self) -> Tensor:
        """The log-ratio to the reference, w - W."""
        return self.chosen - self.chosen_reference

    @property
    def ratio_rejected(self) -> Tensor:
        return self.rejected - self.rejected_reference

    def per_token(self) -> "Pairs":
        """These pairs with means over the tokens of an answer in place of sums."""
        n, m = self.chosen_length, self.rejected_length
        return Pairs(self.chosen / n, self.rejected / m, self.chosen_reference / n, self.rejected_reference / m, n, m)


def pair_losses(pairs: Pairs, algo: PreferenceOptions) -> Tensor:
    """The loss of each pair, (n,).

    Args:
        pairs: the log-probabilities.
        algo: the options.
    """
    losses = FORMULAS[algo.loss](_seen(pairs, algo), algo)
    if algo.sft_share:
        losses = losses - algo.sft_share * pairs.chosen / pairs.chosen_length
    return losses


def rewards(pairs: Pairs, algo: PreferenceOptions) -> tuple[Tensor, Tensor]:
    """What the loss counts as reward of the chosen and of the rejected answers, (n,) each: beta times the log-ratio."""
    seen = _seen(pairs, algo)
    strength = 1.0 if algo.loss == "orpo" else algo.strength
    return strength * seen.ratio_chosen, strength * seen.ratio_rejected


def kto(ratios: Tensor, is_good: Tensor, mismatched: Tensor, algo: PreferenceOptions) -> tuple[Tensor, Tensor]:
    """KTO: good answers are to be likelier than under the reference, beyond how far the model is from it anyway, bad ones less.

    With r = log pi(y | x) - log pi_ref(y | x) and z = max(0, mean of r over answers of other prompts), without gradient:

        desirable_weight (1 - s(beta (r - z)))      for good answers
        undesirable_weight (1 - s(beta (z - r)))    for bad ones

    Args:
        ratios: r of each answer, (n,).
        is_good: (n,) bool.
        mismatched: r of answers of other prompts, (m,). Empty: z is 0.
        algo: the options.

    Returns:
        The loss of each answer, (n,), and z.
    """
    z = mismatched.detach().mean().clamp(min=0) if len(mismatched) else ratios.new_zeros(())
    good = algo.desirable_weight * (1 - torch.sigmoid(algo.strength * (ratios - z)))
    bad = algo.undesirable_weight * (1 - torch.sigmoid(algo.strength * (z - ratios)))
    return torch.where(is_good, good, bad), z


def _seen(pairs: Pairs, algo: PreferenceOptions) -> Pairs:
    """The log-probabilities as the loss takes them: sums, or means per token."""
    return pairs.per_token() if algo.length_normalized or algo.traits.normalized is None else pairs


def _margins(pairs: Pairs, algo: PreferenceOptions) -> Tensor:
    """Beta times h."""
    return algo.strength * (pairs.ratio_chosen - pairs.ratio_rejected)


def _dpo(pairs: Pairs, algo: PreferenceOptions) -> Tensor:
    margins, flipped = _margins(pairs, algo), algo.label_smoothing
    return -(1 - flipped) * logsigmoid(margins) - flipped * logsigmoid(-margins)


def _robust(pairs: Pairs, algo: PreferenceOptions) -> Tensor:
    margins, flipped = _margins(pairs, algo), algo.label_smoothing
    return (flipped * logsigmoid(-margins) - (1 - flipped) * logsigmoid(margins)) / (1 - 2 * flipped)


def _ipo(pairs: Pairs, algo: PreferenceOptions) -> Tensor:
    return (pairs.ratio_chosen - pairs.ratio_rejected - 1 / (2 * algo.strength)).square()


def _hinge(pairs: Pairs, algo: PreferenceOptions) -> Tensor:
    return torch.relu(1 - _margins(pairs, algo))


def _exo(pairs: Pairs, algo: PreferenceOptions) -> Tensor:
    margins, flipped = _margins(pairs, algo), algo.label_smoothing
    wins, loses = logsigmoid(margins), logsigmoid(-margins)
    return wins.exp() * (wins - math.log(1 - flipped)) + loses.exp() * (loses - math.log(flipped))


def _nca(pairs: Pairs, algo: PreferenceOptions) -> Tensor:
    chosen, rejected = algo.strength * pairs.ratio_chosen, algo.strength * pairs.ratio_rejected
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def _sppo(pairs: Pairs, algo: PreferenceOptions) -> Tensor:
    target = 1 / (2 * algo.strength)
    return (pairs.ratio_chosen - target).square() + (pairs.ratio_rejected + target).square()


def _apo_zero(pairs: Pairs, algo: PreferenceOptions) -> Tensor:
    chosen, rejected = algo.strength * pairs.ratio_chosen, algo.strength * pairs.ratio_rejected
    return 1 - torch.sigmoid(chosen) + torch.sigmoid(rejected)


def _apo_down(pairs: Pairs, algo: PreferenceOptions) -> Tensor:
    return torch.sigmoid(algo.strength * pairs.ratio_chosen) + 1 - torch.sigmoid(_margins(pairs, algo))


def _simpo(pairs: Pairs, algo: PreferenceOptions) -> Tensor:
    gamma = algo.strength / 2 if algo.gamma is None else algo.gamma
    return -logsigmoid(algo.strength * (pairs.chosen - pairs.rejected) - gamma)


def _orpo(pairs: Pairs, algo: PreferenceOptions) -> Tensor:
    odds = _logit(pairs.chosen) - _logit(pairs.rejected)
    return -pairs.chosen - algo.strength * logsigmoid(odds)


def _cpo(pairs: Pairs, algo: PreferenceOptions) -> Tensor:
    return -logsigmoid(algo.strength * (pairs.chosen - pairs.rejected))


def _logit(log_probability: Tensor) -> Tensor:
    """log(p / (1 - p)) from log p. A p of 1 counts as the largest number below it."""
    p = log_probability.clamp(max=-torch.finfo(log_probability.dtype).eps)
    return p - torch.log(-torch.expm1(p))


FORMULAS: Mapping[str, Callable[[Pairs, PreferenceOptions], Tensor]] = {
    "dpo": _dpo,
    "robust": _robust,
    "ipo": _ipo,
    "hinge": _hinge,
    "exo": _exo,
    "nca": _nca,
    "sppo": _sppo,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "simpo": _simpo,
    "orpo": _orpo,
    "cpo": _cpo,
}
"""The formula of each loss of pairs: of log-probabilities as `_seen` gives them."""
