"""The verb `average`: its options, and what it runs."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from hub.config.finished import FinishedOptions, FinishedVerb
from hub.config.option import option


@dataclass(kw_only=True)
class AverageOptions(FinishedOptions):
    """Options of `average` that are its own."""

    runs: list[str] = field(default_factory=list)
    """The runs whose models are averaged: run folders, or folders with a model or an adapter."""

    last: int | None = option(None, ge=2)
    """Average the last so many models of `run`: its result and its newest checkpoints."""

    base: float | None = option(None, ge=0, lt=1)
    """Weight of the model that training began with. null: 0.5 for a single model, 0 for several."""

    weights: list[float] = field(default_factory=list)
    """Weights of the models, in their order. Empty: equal. They are divided by their sum."""

    greedy: bool = False
    """Begin with the best model, and take each further one only if the held-out loss falls (greedy soup, arXiv 2203.05482)."""

    rank: int | None = option(None, ge=1)
    """Rank of the averaged adapter. null: the sum of all ranks, which is exact."""

    out: str | None = None
    """Folder for the model. null: `averaged` in the folder of the run, or of the first one."""

    def problems(self) -> Iterator[str]:
        if self.runs and self.run is not None:
            yield f"run={self.run} and runs= name different models. Leave one of them out"
        if self.last is not None and self.run is None:
            yield f"last={self.last} takes the last models of a run. Type run=latest last={self.last}"
        if self.weights and not all(math.isfinite(weight) and weight > 0 for weight in self.weights):
            yield f"weights={self.weights} is not allowed. Allowed: numbers above 0"
        if self.weights and self.runs and len(self.weights) != len(self.runs):
            yield f"weights has {len(self.weights)} numbers for {len(self.runs)} runs. Type one for each"
        if self.greedy and self.weights:
            yield "greedy=true gives all models that it takes the same weight. Leave weights out"
        if self.greedy and self.base is not None:
            yield "greedy=true averages the models alone. Leave base out"


VERB = FinishedVerb(
    name="average",
    summary="Average the models of runs, the last checkpoints of one, or a run and its base.",
    options=AverageOptions,
    function="hub.tasks.average.average:average",
    sections=("model", "data", "evaluate"),
    needs_model=False,
    examples=(
        ("a run and its base, half and half", "python -m hub average run=latest"),
        ("its last three models", "python -m hub average run=latest last=3"),
        ("several runs, those that help", "python -m hub average runs=[runs/a,runs/b,runs/c] greedy=true"),
    ),
    notes="Adapters are averaged as products B A, never A and B apart; whole models in float32, one tensor at a time.",
)
