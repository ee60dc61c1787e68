"""Options of learning from preferences. Those of what trains come from the plugins that train it."""

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast

from hub_lora_sft.config import LoraSftConfig
from hub_osft.config import OsftConfig
from hub_sft.config import SftConfig

from hub import AlgoConfig, RunConfig, option
from hub.config.option import AUTO
from hub.data.formats.preferences import JUDGED, PAIR
from hub.plugins.offers import Roles

BASE, NONE = "base", "none"
LORA_RATE, FULL_RATE, OSFT_RATE = 1e-5, 5e-7, 5e-6


class Traits(NamedTuple):
    """What a loss takes."""

    beta: float = 0.1
    """Its default of `algo.beta`."""

    reference: bool = True
    """Whether it compares with a reference model."""

    smoothed: bool = False
    """Whether it takes `algo.label_smoothing`."""

    normalized: bool | None = False
    """Whether it takes `algo.length_normalized`. None: it is a mean per token by its definition."""

    sft_weight: float | None = 0.0
    """Its default of `algo.sft_weight`. None: it has such a term by its definition."""


LOSSES: Mapping[str, Traits] = {
    "dpo": Traits(smoothed=True, normalized=True),
    "robust": Traits(smoothed=True, normalized=True),
    "ipo": Traits(normalized=None),
    "hinge": Traits(normalized=True),
    "exo": Traits(smoothed=True, normalized=True),
    "nca": Traits(),
    "sppo": Traits(),
    "apo_zero": Traits(),
    "apo_down": Traits(),
    "kto": Traits(),
    "simpo": Traits(beta=2.0, reference=False, normalized=None),
    "orpo": Traits(reference=False, normalized=None, sft_weight=None),
    "cpo": Traits(reference=False, sft_weight=1.0),
}
"""The losses by name. `losses.py` has their formulas."""


if TYPE_CHECKING:
    _Options = AlgoConfig
else:
    _Options = object  # as a base here, AlgoConfig's defaults would take the place of those of what trains


@dataclass(kw_only=True)
class PreferenceOptions(_Options):
    """Options of learning from preferences. A base class in front of the options of what trains, whose defaults it changes."""

    num_epochs: float = option(1.0, gt=0)
    """Epochs over the pairs. In a second one the model has seen the answers and memorizes them."""

    effective_batch_size: int | str = option(16, ge=1)
    """Pairs per optimizer step over all processes, exactly."""

    loss: str = option("dpo", choices=tuple(LOSSES))
    """What is lowered: dpo, robust, ipo, hinge, exo, nca, sppo, apo_zero, apo_down, kto (rows with a label, or pairs), simpo,
    orpo, cpo. The last three take no reference. docs/preferences.md has the formulas."""

    beta: float | None = option(None, gt=0)
    """How strongly the model is held to the reference: smaller lets it go further. orpo: weight of the odds ratio. null: 0.1,
    for simpo 2.0."""

    gamma: float | None = option(None, ge=0)
    """With simpo: the margin by which the chosen answer is to win. null: half of beta."""

    label_smoothing: float = option(0.0, ge=0, lt=0.5)
    """With dpo, robust and exo: the fraction of pairs that are believed to be the wrong way round."""

    length_normalized: bool = False
    """With dpo, robust, hinge and exo: the mean log-probability per token of an answer in place of the sum."""

    sft_weight: float | None = option(None, ge=0)
    """Weight of the chosen answer's mean negative log-likelihood per token, which is added to the loss. null: 0, for cpo 1."""

    desirable_weight: float = option(1.0, gt=0)
    """With kto: weight of the good answers. If they are few, raise it: weight times number should be alike for both."""

    undesirable_weight: float = option(1.0, gt=0)
    """With kto: weight of the bad answers."""

    reference: str = AUTO
    """The reference model: base (the model as training begins), or the folder or id of another one with the same tokens. none:
    none. auto: base, and none for simpo, orpo and cpo."""

    @property
    def traits(self) -> Traits:
        """What the loss takes."""
        return LOSSES[self.loss]

    @property
    def strength(self) -> float:
        """Beta, as set or by the loss."""
        return self.traits.beta if self.beta is None else self.beta

    @property
    def sft_share(self) -> float:
        """The weight of the chosen answer's likelihood, as set or by the loss."""
        return (self.traits.sft_weight or 0.0) if self.sft_weight is None else self.sft_weight

    @property
    def data_format(self) -> str | None:
        """The format of the rows: `judged` takes pairs as well."""
        return "judged" if self.loss == "kto" else "preference"

    def with_paths(self, full: Callable[[Any, str], Any]) -> Self:
        made = cast(Self, super().with_paths(full))
        return made if self.reference in (AUTO, BASE, NONE) else replace(made, reference=full(self.reference, ""))

    def problems(self, cfg: RunConfig) -> Iterator[str]:
        yield from super().problems(cfg)
        if self.loss in LOSSES:
            yield from self._loss_problems(cfg)

    def _loss_problems(self, cfg: RunConfig) -> Iterator[str]:
        """One line for each option that the loss does not take, or that clashes with how references are computed."""
        traits, chosen = self.traits, f"algo.loss={self.loss}"
        with_smoothing, with_length = _named(lambda one: one.smoothed), _named(lambda one: bool(one.normalized))
        if self.label_smoothing and not traits.smoothed:
            yield f"{chosen} takes no algo.label_smoothing. Leave it out, or type algo.loss={with_smoothing}"
        if self.loss == "exo" and not self.label_smoothing:
            yield f"{chosen} needs algo.label_smoothing above 0, its target. Type algo.label_smoothing=0.001"
        if self.length_normalized and not traits.normalized:
            why = "is a mean per token by its definition" if traits.normalized is None else "takes no algo.length_normalized"
            yield f"{chosen} {why}. Leave algo.length_normalized out, or type algo.loss={with_length}"
        if self.gamma is not None and self.loss != "simpo":
            yield f"algo.gamma={self.gamma:g} is for simpo, but {chosen}. Leave it out"
        if self.sft_weight is not None and traits.sft_weight is None:
            yield f"{chosen} has the chosen answer's likelihood by its definition. Leave algo.sft_weight out"
        for name in ("desirable_weight", "undesirable_weight"):
            if self.loss != "kto" and (value := getattr(self, name)) != 1.0:
                yield f"algo.{name}={value:g} is for kto, but {chosen}. Leave it out"
        if self.loss == "kto" and self.sft_share:
            yield f"{chosen} takes no algo.sft_weight. Leave it out"
        yield from self._reference_problems(cfg)
        if cfg.data.text_column is not None or cfg.data.block_size is not None:
            yield "data.text_column and data.block_size are for raw documents, not for preferences. Leave them out"
        if cfg.data.loss_on == "all":
            yield "data.loss_on=all would count the prompt, which chosen and rejected share. Type data.loss_on=assistant"

    def _reference_problems(self, cfg: RunConfig) -> Iterator[str]:
        chosen = f"algo.loss={self.loss}"
        if not self.traits.reference:
            if self.reference not in (AUTO, NONE):
                yield f"{chosen} takes no reference, but algo.reference={self.reference}. Leave it out"
            return
        if self.reference == NONE:
            free = ", ".join(name for name, one in LOSSES.items() if not one.reference)
            yield f"{chosen} compares with a reference, but algo.reference=none. Leave it out, or type algo.loss=NAME: {free}"
        if cfg.data.streaming:
            yield (
                f"{chosen} computes the reference's log-probabilities of all rows before training, and data.streaming=true "
                "reads them meanwhile. Type data.streaming=false, or algo.loss=simpo"
            )
        path = os.path.expanduser(self.reference)
        if os.path.isfile(os.path.join(path, "adapter_config.json")):
            yield (
                f"algo.reference={self.reference} is an adapter, not a model. Merge it first: python -m hub export "
                f"run={self.reference} export.to=merged"
            )
        elif self.reference not in (AUTO, BASE, NONE) and not os.path.isdir(path) and self.reference.count("/") != 1:
            yield (
                f"algo.reference={self.reference}: there is no such folder. Allowed: base, none, a model's folder, or "
                "ORG/NAME of the model hub"
            )


def rows(cfg: RunConfig) -> Collection[Roles]:
    """The samples that a row may have: a pair, and with kto also a judged answer."""
    algo = cfg.algo
    assert isinstance(algo, PreferenceOptions)
    return JUDGED if algo.loss == "kto" else (PAIR,)


def _named(takes: Callable[[Traits], bool]) -> str:
    return ", ".join(name for name, one in LOSSES.items() if takes(one))


@dataclass(kw_only=True)
class DpoConfig(PreferenceOptions, SftConfig):
    """Learning from preferences with all weights. By default DPO (arXiv 2305.18290)."""

    learning_rate: float = option(FULL_RATE, gt=0)
    """Peak learning rate. The loss counts whole answers, so steps are large: a tenth of the rate for answers alone."""


@dataclass(kw_only=True)
class LoraDpoConfig(PreferenceOptions, LoraSftConfig):
    """Learning from preferences with LoRA adapters, also on a model in 4 bits. By default DPO (arXiv 2305.18290)."""

    learning_rate: float = option(LORA_RATE, gt=0)
    """Peak learning rate. The loss counts whole answers, so steps are large: a twentieth of the rate for answers alone."""


@dataclass(kw_only=True)
class OsftDpoConfig(PreferenceOptions, OsftConfig):
    """Learning from preferences within OSFT's free directions, which keeps what the model knows. By default DPO."""

    learning_rate: float = option(OSFT_RATE, gt=0)
    """Peak learning rate: ten times that of all weights, as for answers: only some directions of each matrix are trained."""
