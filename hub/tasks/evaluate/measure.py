"""Measures a model by a plan: losses, metrics of answers, tasks. Works on finished models and on one that is being trained."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp
from typing import Any

import numpy as np
import numpy.typing as npt

from hub.config.generate import GenerateConfig
from hub.tasks.evaluate.passes import Report, Row, Scorer, Scores, adding
from hub.tasks.evaluate.plan import EvaluationPlan
from hub.tasks.evaluate.sets import OTHER, EvaluationSet
from hub.tasks.evaluate.statistics import compare, ratio
from hub.tasks.evaluate.ways import open_scorer, own_attention
from hub.tasks.generate.engine import answers
from hub.tasks.loading import Loaded

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Figure:
    """One figure of one model."""

    set: str
    kind: str
    """`loss`, `metric` or `task`."""

    metric: str
    unit: str
    better: str
    role: str
    n: int
    """Rows."""

    value: float
    stderr: float | None
    keys: tuple[int, ...] = ()
    """Numbers of the rows of `sums`."""

    sums: Floats | None = None
    """(n,) of each row: what it adds to the figure."""

    counts: Floats | None = None
    """(n,) of each row: what it counts."""


@dataclass(frozen=True)
class Measurement:
    """All figures of one model."""

    figures: tuple[Figure, ...]
    layouts: dict[str, str]
    """How the passes over each set and the tasks ran, in words."""

    answers: dict[str, list[str]] = field(default_factory=dict)
    """The generated answers of each set with questions, in their order."""


def measure(loaded: Loaded, plan: EvaluationPlan, report: Report = lambda what, done, total: None) -> Measurement:
    """Measure a model.

    The model may be one that is being trained: it is in evaluation mode meanwhile, and afterwards as it was, with the hub's
    patches. What it needs of `loaded`: a causal language model of transformers or peft on `device`; `dtype`, the type of its
    arithmetic (weights of another type run under autocast); `tokenizer` and `max_positions`. Whether adapters are on is the
    caller's: `with loaded.without_adapter(): measure(...)` measures the base. All processes of a group must call it, with the
    same plan; each measures everything. The random generators are not used, but for tasks that sample.

    Args:
        loaded: the model.
        plan: from `prepare_plan`, made with the tokenizer of the model. It may be used any number of times.
        report: called now and then.

    Raises:
        ModelError: memory runs out with a single row.
        ConfigError: a metric's function fails, or a task can't be run.
    """
    figures: list[Figure] = []
    layouts: dict[str, str] = {}
    texts: dict[str, list[str]] = {}
    if plan.sets:
        longest = max(len(sample) for one in plan.sets for sample in one.samples)
        with open_scorer(loaded, longest, plan.cfg.batch_size) as scorer:
            for one in plan.sets:
                rows = [Row.of_sample(sample) for sample in one.samples]
                found = scorer.scores(rows, lambda done, one=one: report(one.name, done, len(one.samples)))  # type: ignore[misc]
                figures += _losses(one, found)
                layouts[one.name] = scorer.layout
    was_training = loaded.model.training
    loaded.model.eval()
    try:
        for one in plan.sets:
            if plan.metrics and one.questions:
                made, texts[one.name] = _metrics(loaded, plan, one, report)
                figures += made
        if plan.tasks is not None:
            made, layouts["tasks"] = _tasks(loaded, plan, report)
            figures += made
    finally:
        loaded.model.train(was_training)
    return Measurement(tuple(figures), layouts, texts)


def result_rows(first: Measurement, second: Measurement | None, seed: int) -> list[dict[str, Any]]:
    """The rows of evaluation.json.

    Args:
        first: of the model that was asked for.
        second: of the model that it is compared with, e.g. its base. None: none.
        seed: of the bootstrap.
    """
    others = {(one.set, one.kind, one.metric): one for one in second.figures} if second is not None else {}
    rows = []
    for one in first.figures:
        other = others.get((one.set, one.kind, one.metric))
        rows.append(
            {
                "set": one.set,
                "kind": one.kind,
                "metric": one.metric,
                "unit": one.unit,
                "better": one.better,
                "role": one.role,
                "n": one.n,
                "values": [{"value": each.value, "stderr": each.stderr} if each else None for each in (one, other)][
                    : 1 if second is None else 2
                ],
                "difference": None if other is None else _difference(other, one, seed),
            }
        )
    return rows


def _difference(before: Figure, after: Figure, seed: int) -> dict[str, Any] | None:
    """After minus before, on the rows that both have."""
    if before.sums is None or after.sums is None or before.counts is None or after.counts is None:
        return None
    places = {key: place for place, key in enumerate(before.keys)}
    mine = [place for place, key in enumerate(after.keys) if key in places]
    theirs = [places[after.keys[place]] for place in mine]
    if not np.array_equal(before.counts[theirs], after.counts[mine]):
        return None  # other tokens: a loss per token is not comparable
    found = compare(before.sums[theirs], after.sums[mine], after.counts[mine], seed)
    if found is None:
        return None
    value, low, high = found.value, found.low, found.high
    if after.metric == PERPLEXITY:
        # Of the same rows as the loss: its interval, as a factor of the perplexity before.
        value, low, high = after.value - before.value, before.value * (exp(low) - 1), before.value * (exp(high) - 1)
    return {"value": value, "low": low, "high": high, "p": found.p, "test": found.test}


LOSS, PERPLEXITY = "loss", "perplexity"


def _losses(one: EvaluationSet, found: Sequence[Scores]) -> list[Figure]:
    """Loss and perplexity. Samples of one row count together."""
    sums, counts = np.zeros(one.num_rows), np.zeros(one.num_rows)
    for row, scores in zip(one.rows, found, strict=True):
        sums[row] -= scores.log_probabilities.sum()
        counts[row] += len(scores.log_probabilities)
    value, error = ratio(sums, counts)
    keys = tuple(range(one.num_rows))
    perplexity = exp(min(value, 700.0))
    return [
        Figure(one.name, "loss", LOSS, "nats/token", "lower", one.role, one.num_rows, value, error, keys, sums, counts),
        Figure(
            one.name,
            "loss",
            PERPLEXITY,
            "",
            "lower",
            one.role,
            one.num_rows,
            perplexity,
            None if error is None else perplexity * error,
            keys,
            sums,
            counts,
        ),
    ]


def _metrics(loaded: Loaded, plan: EvaluationPlan, one: EvaluationSet, report: Report) -> tuple[list[Figure], list[str]]:
    questions = one.questions
    generate = GenerateConfig(
        max_new_tokens=plan.cfg.max_new_tokens,
        temperature=0.0,
        top_p=1.0,
        repetition_penalty=1.0,
        batch_size=plan.cfg.batch_size,
        seed=plan.cfg.seed,
    )
    prompts = [list(question.prompt) for question in questions]
    with own_attention(loaded):
        made = answers(loaded, prompts, generate, adding(report, f"{one.name}, answers", len(prompts)))
    texts = [answer.text.strip() for answer in made]
    figures = []
    for metric in plan.metrics:
        pairs = zip(texts, questions, strict=True)
        values = np.array([metric(text, question.reference, question.row) for text, question in pairs])
        ones = np.ones(len(values))
        value, error = ratio(values, ones)
        keys = tuple(range(len(values)))
        figures.append(
            Figure(
                one.name,
                "metric",
                metric.name,
                metric.unit,
                metric.better,
                one.role,
                len(values),
                value,
                error,
                keys,
                values,
                ones,
            )
        )
    return figures, texts


def _tasks(loaded: Loaded, plan: EvaluationPlan, report: Report) -> tuple[list[Figure], str]:
    from hub.tasks.evaluate.harness import HubLM
    from hub.tasks.evaluate.harness_tasks import run_tasks

    assert plan.tasks is not None
    lm = HubLM(loaded, plan.cfg.batch_size, lambda what, done, total: report(f"tasks, {what}", done, total))
    found = run_tasks(lm, plan.tasks, plan.cfg)
    return [
        Figure(
            one.task,
            "task",
            one.metric,
            "",
            one.better,
            OTHER,
            one.n,
            one.value,
            one.stderr,
            one.keys if one.values is not None else (),
            one.values,
            None if one.values is None else np.ones(len(one.values)),
        )
        for one in found
    ], lm.layout


def loss_figures(scorer: Scorer, plan: EvaluationPlan) -> dict[str, Figure]:
    """The loss of each set of a plan, by the set's name. For weights that change while the scorer stays open."""
    return {one.name: _losses(one, scorer.scores([Row.of_sample(sample) for sample in one.samples]))[0] for one in plan.sets}
