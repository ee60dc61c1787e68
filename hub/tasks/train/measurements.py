"""What training learnt, kept and lost: the same measurements before the first step, after the last one, and in between.

The figures are in the run folder, so that a resumed run has them.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hub.config.evaluate import NONE, EvaluateConfig
from hub.errors import ConfigError
from hub.models.load import load_config
from hub.models.structure import max_positions
from hub.result import Outcome
from hub.system.files import write_json
from hub.tasks.evaluate.checks import sharded_line
from hub.tasks.evaluate.measure import Figure, Measurement, measure, result_rows
from hub.tasks.evaluate.plan import prepare_plan
from hub.tasks.evaluate.report import Evaluation
from hub.tasks.evaluate.sets import KEPT, LEARNT, Encoding
from hub.tasks.loading import Loaded
from hub.train.measuring import Measured
from hub.train.setup.setup import Setup

BEFORE_FILE = "evaluation_before.json"
STEPS_FILE = "evaluation_steps.json"
FILE = "evaluation.json"
NUM_EXAMPLES = 12
"""Answers before and after that evaluation.json holds."""


def wanted(cfg: EvaluateConfig) -> bool:
    """Whether anything but the held-out loss is to be measured around training."""
    return bool(cfg.metrics or cfg.tasks or cfg.also or cfg.retention != NONE)


class TrainMeasurements:
    """The measurements of one run. Implements `hub.train.measuring.Measurements`."""

    def __init__(self, setup: Setup) -> None:
        """Read and encode all that is measured. To be called once the strategy is chosen.

        Raises:
            ConfigError: a metric or a task does not exist or can't be measured here.
            DataError: a set can't be read.
        """
        cfg, strategy = setup.cfg, setup.session.strategy
        if strategy.shards_weights and (cfg.evaluate.metrics or cfg.evaluate.tasks):
            raise ConfigError(sharded_line(cfg.evaluate, strategy.name, str(setup.run.path)))
        self._setup = setup
        self._positions = max_positions(load_config(cfg.model, setup.base_path))
        held_out = setup.data.evaluation or None
        encoding = Encoding(setup.tokenizer, self._positions, setup.base_path, setup.run.say)
        self._plan = prepare_plan(cfg, encoding, cfg if held_out else None, held_out)
        self._at: dict[int, Measurement] = {}
        self._rows = _stored_rows(setup.run.path / STEPS_FILE)
        self._before: Measurement | None = None
        self._seconds = 0.0

    def has(self, step: int) -> bool:
        return step in self._at

    def measure(self, step: int, model: torch.nn.Module) -> Mapping[str, Measured]:
        """Measure the model as it is. See `Measurements`."""
        setup, started = self._setup, time.monotonic()
        inner: Any = getattr(model, "module", model)
        loaded = Loaded(
            setup.run.path.name,
            inner,
            setup.tokenizer,
            setup.session.device,
            setup.session.compute_dtype,
            self._positions,
            setup.base_path,
            hasattr(inner, "peft_config"),
        )
        found = measure(loaded, self._plan)
        self._at = {step: found}  # the newest is enough: figures of each row take memory
        if step == 0:
            self._before = found
            if setup.run.is_main:
                write_json(setup.run.path / BEFORE_FILE, _as_json(found))
        else:
            self._rows[step] = result_rows(found, None, self._plan.cfg.seed)
            if setup.run.is_main:
                write_json(setup.run.path / STEPS_FILE, self._steps(max(self._rows)))
        self._seconds += time.monotonic() - started
        shown = [one for one in found.figures if one.metric != "perplexity"]
        when = "before training" if step == 0 else f"after step {step}"
        setup.run.say(f"measured {when}: " + ", ".join(f"{one.set} {one.metric} {one.value:.4g}" for one in shown))
        return {f"{one.set}/{one.metric}": Measured(one.value, one.better) for one in found.figures}

    def write(self, outcome: Outcome) -> Evaluation | None:
        """Compare after with before, and write evaluation.json. On rank 0.

        Args:
            outcome: of the run. The model of its result was measured last, or its run was stopped.

        Returns:
            The comparison. None: training did not get to its end.
        """
        step = outcome.best_step or outcome.num_steps
        if outcome.stopped_by is not None or step not in self._at:
            return None
        setup = self._setup
        before = self._before or _of_json(setup.run.path / BEFORE_FILE)
        after = self._at[step]
        dtype = str(setup.session.compute_dtype).removeprefix("torch.")
        model = {"name": setup.run.path.name, "path": str(outcome.model_path), "base": setup.cfg.model.path, "dtype": dtype}
        models = [model | {"adapter": None}, model | {"name": "before training", "path": setup.cfg.model.path, "adapter": None}]
        settings = {**self._plan.settings, "layouts": after.layouts, "device": setup.session.device.type}
        rows = result_rows(after, before, self._plan.cfg.seed)
        found = Evaluation(models[: 1 if before is None else 2], settings, rows, self._seconds)
        values = found.as_json() | {"steps": self._steps(outcome.num_steps), "examples": self._examples(before, after)}
        write_json(setup.run.path / FILE, values)
        found.written = setup.run.path / FILE
        return found

    def _steps(self, last: int) -> list[dict[str, Any]]:
        """What was measured up to a step, each step once. A run that was resumed has what was measured before."""
        return [{"step": step, "rows": self._rows[step]} for step in sorted(self._rows) if step <= last]

    def _examples(self, before: Measurement | None, after: Measurement) -> list[dict[str, Any]]:
        """Some answers before and after, side by side."""
        examples = []
        for one in self._plan.sets:
            new, old = after.answers.get(one.name, []), before.answers.get(one.name, []) if before else []
            for number, (question, answer) in enumerate(zip(one.questions, new, strict=False)):
                prompt = self._setup.tokenizer.decode(list(question.prompt), skip_special_tokens=True)
                examples.append(
                    {
                        "set": one.name,
                        "prompt": prompt,
                        "reference": question.reference,
                        "before": old[number] if number < len(old) else None,
                        "after": answer,
                    }
                )
        return examples[:NUM_EXAMPLES]


def verdicts(found: Evaluation) -> list[str]:
    """What was learnt, kept and lost, in a line each. Lost: worse with an interval that does not hold 0."""
    lines: dict[str, list[str]] = {"learnt": [], "kept": [], "lost": []}
    for row in found.rows:
        difference = row["difference"]
        if difference is None or row["metric"] == "perplexity":
            continue
        sign = 1 if row["better"] == "higher" else -1
        gained = sorted((sign * difference["low"], sign * difference["high"]))
        text = f"{row['set']} {row['metric']} {row['values'][1]['value']:.4g} -> {row['values'][0]['value']:.4g}"
        if gained[1] < 0:
            lines["lost"].append(text)
        elif gained[0] > 0 and row["role"] != KEPT:
            lines["learnt"].append(text)
        elif row["role"] != LEARNT:
            lines["kept"].append(text)
    return [f"{word}: {', '.join(texts)}" for word, texts in lines.items() if texts]


def _as_json(found: Measurement) -> dict[str, Any]:
    figures = [asdict(replace(one, sums=None, counts=None)) for one in found.figures]
    for values, one in zip(figures, found.figures, strict=True):
        values["sums"] = None if one.sums is None else one.sums.tolist()
        values["counts"] = None if one.counts is None else one.counts.tolist()
    return {"figures": figures, "layouts": found.layouts, "answers": found.answers}


def _stored_rows(file: Path) -> dict[int, list[dict[str, Any]]]:
    """Step -> what was measured after it, of a run that is resumed. Empty: there is no such file."""
    if not file.is_file():
        return {}
    return {one["step"]: one["rows"] for one in json.loads(file.read_text(encoding="utf-8"))}


def _of_json(file: Path) -> Measurement | None:
    """The measurement that a file holds. None: there is no such file."""
    if not file.is_file():
        return None
    values = json.loads(file.read_text(encoding="utf-8"))
    figures = []
    for one in values["figures"]:
        arrays = {name: None if one[name] is None else np.asarray(one[name], np.float64) for name in ("sums", "counts")}
        figures.append(Figure(**{**one, **arrays, "keys": tuple(one["keys"])}))
    return Measurement(tuple(figures), values["layouts"], values["answers"])
