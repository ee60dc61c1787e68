"""Losses of several models on the same rows: what `scale` and `average` choose by.

What counts is the loss on what was learnt, plus what was forgotten: how much the loss on each set that should be kept has risen
above that of the base.
"""

from collections.abc import Mapping
from dataclasses import replace

from hub.config.evaluate import NONE
from hub.config.schema import RunConfig
from hub.errors import ConfigError
from hub.models.finished import Asked
from hub.tasks.evaluate.evaluate import held_out_config
from hub.tasks.evaluate.measure import Figure
from hub.tasks.evaluate.plan import HELD_OUT, EvaluationPlan, prepare_plan
from hub.tasks.evaluate.sets import KEPT, Encoding, Say
from hub.tasks.evaluate.statistics import Difference, compare
from hub.tasks.loading import Loaded

Losses = Mapping[str, Figure]
"""The loss on each set, by its name."""


def rows_to_choose_by(asked: Asked) -> RunConfig | None:
    """The config of the held-out rows. None: neither the run nor what was typed has any.

    Raises:
        ConfigError: metrics or tasks are asked for, which only `evaluate` measures.
    """
    wanted = asked.cfg.evaluate
    typed = [name for name in ("metrics", "tasks") if getattr(wanted, name) and f"evaluate.{name}" not in asked.from_run]
    if typed:
        raise ConfigError(f"evaluate.{typed[0]} is measured by hub evaluate. Leave it out: here losses decide")
    return held_out_config(asked)


def plan_of_losses(asked: Asked, held_out: RunConfig | None, loaded: Loaded, say: Say) -> EvaluationPlan:
    """Encode the held-out rows, retention text, and the evaluation sets of earlier runs."""
    cfg = replace(asked.cfg, evaluate=replace(asked.cfg.evaluate, metrics=[], tasks=[]))
    folder = loaded.base_path if not loaded.has_adapter else None
    return prepare_plan(cfg, Encoding(loaded.tokenizer, loaded.max_positions, folder, say), held_out)


def measures_something(asked: Asked, held_out: RunConfig | None) -> bool:
    """Whether there is any set to choose by."""
    wanted = asked.cfg.evaluate
    return held_out is not None or wanted.retention != NONE or bool(wanted.also)


def cost(losses: Losses, base: Losses | None) -> float:
    """What is minimized, in nats per token: the held-out loss, plus what was forgotten.

    Args:
        losses: of a model.
        base: of the model that training began with. None: it is not known, and nothing counts as forgotten.
    """
    learnt = losses[HELD_OUT].value if HELD_OUT in losses else 0.0
    kept = [name for name, figure in losses.items() if figure.role == KEPT]
    forgotten = sum(max(0.0, losses[name].value - base[name].value) for name in kept) if base is not None else 0.0
    return learnt + forgotten


def gain(before: Losses, after: Losses, seed: int) -> Difference | None:
    """The held-out loss after minus before, on the same rows. None: nothing is held out, or it is a single row."""
    if HELD_OUT not in before:
        return None
    first, second = before[HELD_OUT], after[HELD_OUT]
    assert first.sums is not None
    assert second.sums is not None
    assert second.counts is not None
    return compare(first.sums, second.sums, second.counts, seed)


def gain_line(found: Difference | None, than: str) -> str:
    """A line on a difference of held-out losses. Empty: there is none."""
    if found is None:
        return ""
    if found.value == 0:
        return f"the same held-out loss as {than}"
    what, p = "lower" if found.value < 0 else "higher", "< 0.001" if found.p < 0.001 else f"= {found.p:.3f}"
    return (
        f"held-out loss {abs(found.value):.4f} nats per token {what} than {than} "
        f"(95 % interval {found.low:+.4f} to {found.high:+.4f}, p {p})"
    )
