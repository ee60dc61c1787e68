"""The verb `evaluate`: its options, and what it runs."""

from collections.abc import Iterator
from dataclasses import dataclass

from hub.config.finished import FinishedOptions, FinishedVerb
from hub.config.option import AUTO


@dataclass(kw_only=True)
class EvaluateOptions(FinishedOptions):
    """Options of `evaluate` that are its own."""

    against: str = AUTO
    """The model to compare with, on the same rows: base (what training began with; for an adapter the same weights without it),
    a run, a folder, a preset, an id of the model hub, or none. auto: the base of a run or an adapter, else none."""

    out: str | None = None
    """File for the result. null: evaluation.json in the run folder, for a run."""

    def problems(self) -> Iterator[str]:
        if self.out is not None and not self.out.endswith(".json"):
            yield f"out={self.out}: the result is JSON. Type out=FILE.json"
        if self.against == "":
            yield "against= names no model. Type against=base, a run, a folder, or none"


VERB = FinishedVerb(
    name="evaluate",
    summary="Measure a model, and what training changed: loss, answers, lm-eval tasks.",
    options=EvaluateOptions,
    function="hub.tasks.evaluate.evaluate:evaluate",
    sections=("model", "data", "evaluate"),
    examples=(
        ("a run on its evaluation set, beside its base", "python -m hub evaluate run=latest"),
        ("what it forgot", "python -m hub evaluate run=latest evaluate.retention=auto"),
        ("answers, on other rows", "python -m hub evaluate run=latest data.path=test.jsonl evaluate.metrics=[contains,f1]"),
        ("a task of lm-eval", "python -m hub evaluate model=smollm2_135m evaluate.tasks=[arc_easy] evaluate.limit=100"),
        ("two runs", "python -m hub evaluate run=latest against=runs/first"),
    ),
    notes="The result goes to evaluation.json in the run folder, or to out=FILE. docs/evaluation.md explains the figures.",
)
