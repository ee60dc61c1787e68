"""The verb `scale`: its options, and what it runs."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from hub.config.finished import FinishedOptions, FinishedVerb
from hub.config.option import AUTO

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)


@dataclass(kw_only=True)
class ScaleOptions(FinishedOptions):
    """Options of `scale` that are its own."""

    alpha: float | str = AUTO
    """Strength of the adapter that is written, as a multiple of the trained one: 0 is the base, 1 what was trained. auto: the
    best one of `alphas`."""

    alphas: list[float] = field(default_factory=lambda: list(STRENGTHS))
    """Strengths that are measured."""

    out: str | None = None
    """Folder for the adapter. null: `scaled` in the run folder, or beside the adapter."""

    def problems(self) -> Iterator[str]:
        numbers = [("alphas", value) for value in self.alphas]
        if self.alpha != AUTO:
            if isinstance(self.alpha, str):
                yield f"alpha={self.alpha} is not allowed. Allowed: a number at least 0 or auto"
            elif math.isfinite(self.alpha):  # else the type's own line says it
                numbers.append(("alpha", self.alpha))
        for name, value in numbers:
            if not (math.isfinite(value) and value >= 0):
                yield f"{name}={value} is not allowed. Allowed: numbers at least 0"
        if self.alpha == AUTO and not self.alphas:
            yield "alphas=[] leaves nothing to choose from. Leave it out, or type alphas=[0.5,1.0]"


VERB = FinishedVerb(
    name="scale",
    summary="Choose how strong an adapter should be, by held-out loss and what it forgot.",
    options=ScaleOptions,
    function="hub.tasks.scale.scale:scale",
    sections=("model", "data", "evaluate"),
    examples=(
        ("by the run's evaluation set", "python -m hub scale run=latest"),
        ("and by what it forgot of general text", "python -m hub scale run=latest evaluate.retention=auto"),
        ("a strength of your own", "python -m hub scale run=latest alpha=0.7"),
    ),
    notes="One forward pass over the rows for each strength. The adapter that comes out is a plain LoRA with another alpha.",
)
