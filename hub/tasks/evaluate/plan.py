"""The plan of an evaluation: all that is read from files, prepared once and measured on any number of models."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hub.compose.runfile import read
from hub.config.evaluate import NONE, EvaluateConfig
from hub.config.schema import RunConfig
from hub.data.samples.sample import Unit, fingerprint
from hub.errors import ConfigError
from hub.models.finished import run_folder
from hub.system.files import names_apart
from hub.tasks.evaluate.harness_tasks import load_tasks, task_versions
from hub.tasks.evaluate.metrics import LoadedMetric, load_metrics, reader
from hub.tasks.evaluate.sets import KEPT, LEARNT, Encoding, EvaluationSet, make_set, retention_config

HELD_OUT = "held-out"
RETENTION = "retention"
PACKAGES = ("finetune-hub", "torch", "transformers", "lm_eval", "sacrebleu", "rouge_score")
"""Whose versions may change a figure."""


@dataclass(frozen=True)
class EvaluationPlan:
    """What is measured."""

    cfg: EvaluateConfig
    sets: tuple[EvaluationSet, ...]
    metrics: tuple[LoadedMetric, ...]
    tasks: dict[str, Any] | None
    """Loaded tasks of lm-eval, by `load_tasks`. None: none is asked for."""

    settings: dict[str, Any]
    """Every setting that decides a figure."""


def prepare_plan(
    cfg: RunConfig,
    encoding: Encoding,
    held_out: RunConfig | None = None,
    units: Sequence[Unit] | None = None,
    tasks: dict[str, Any] | None = None,
) -> EvaluationPlan:
    """Read and encode all that `cfg.evaluate` asks for.

    Args:
        cfg: the config. Retention text takes its template; runs of `evaluate.also` are looked for in its `output_dir`.
        encoding: tokenizer and lengths of the model.
        held_out: the config whose `data` says which rows are the held-out set. None: there is none.
        units: the encoded rows of the held-out set, if a run has them already.
        tasks: loaded tasks, if they were loaded before.

    Raises:
        ConfigError: a metric, a task or a run does not exist, or a metric needs a field that no row has.
        DataError: a set can't be read, or is empty.
    """
    wanted = cfg.evaluate
    evaluate = replace(wanted, metrics=list(dict.fromkeys(wanted.metrics)), tasks=list(dict.fromkeys(wanted.tasks)))
    cfg = replace(cfg, evaluate=evaluate)
    metrics = load_metrics(evaluate.metrics)
    asks, reads = bool(metrics), reader(metrics)
    sets: list[EvaluationSet] = []
    if held_out is not None:
        sets.append(make_set(HELD_OUT, LEARNT, held_out, encoding, evaluate.limit, asks, units, reads))
    if evaluate.retention != NONE:
        general = retention_config(cfg, evaluate.retention, encoding.max_positions)
        quiet = replace(encoding, say=lambda line: None)  # documents are always split
        sets.append(make_set(RETENTION, KEPT, general, quiet, evaluate.limit, False))
    earlier = {run_folder(run, cfg.output_dir): run for run in evaluate.also}  # each once
    for name, (folder, run) in zip(names_apart(list(earlier), (HELD_OUT, RETENTION)), earlier.items(), strict=True):
        sets.append(make_set(name, KEPT, earlier_run(folder, run, cfg), encoding, evaluate.limit, asks, reads=reads))
    if asks:
        _check_questions(metrics, sets)
    if evaluate.tasks and tasks is None:
        tasks = load_tasks(evaluate)
    return EvaluationPlan(evaluate, tuple(sets), tuple(metrics), tasks, _settings(cfg, encoding, sets, tasks))


def earlier_run(folder: Path, run: str, cfg: RunConfig) -> RunConfig:
    """The config of a run with the model that is measured now.

    Args:
        folder: of the run.
        run: as it was typed.
        cfg: the config of the evaluation.

    Raises:
        ConfigError: it has no evaluation set.
    """
    theirs = read(folder / "run.yaml")
    if not (theirs.data.eval_path or theirs.data.eval_fraction):
        raise ConfigError(f"evaluate.also={run}: this run has no evaluation set. Leave it out, or type data.path=FILE")
    data = replace(theirs.data, template=cfg.data.template, date=cfg.data.date, max_seq_len=cfg.data.max_seq_len)
    return replace(cfg, data=data, algo=replace(cfg.algo, seed=theirs.algo.seed))


def _check_questions(metrics: Sequence[LoadedMetric], sets: Sequence[EvaluationSet]) -> None:
    """Refuse metrics that no row can have."""
    questions = [question for one in sets for question in one.questions]
    names = ", ".join(metric.name for metric in metrics)
    if not questions:
        raise ConfigError(
            f"evaluate.metrics={names}: no row has an answer to compare with. Type data.path=FILE with conversations, or rows "
            "with prompt and completion"
        )
    fields = {name for question in questions for name in question.row}
    for metric in metrics:
        if missing := [name for name in metric.fields if name not in fields]:
            raise ConfigError(
                f"evaluate.metrics={metric.name}: it needs the field {missing[0]}, which no row has. Fields of the rows: "
                f"{', '.join(sorted(fields))}"
            )


def _settings(
    cfg: RunConfig, encoding: Encoding, sets: Sequence[EvaluationSet], tasks: dict[str, Any] | None
) -> dict[str, Any]:
    template = encoding.tokenizer.chat_template
    digest = hashlib.sha256(str(template).encode()).hexdigest()[:16] if template else None
    return {
        **asdict(cfg.evaluate),
        "template": cfg.data.template or "the tokenizer's own",
        "template_sha256": digest,
        "date": cfg.data.date,
        "generation": "greedy",
        "sets": {
            one.name: {"rows": one.num_rows, "samples": len(one.samples), "sha256": fingerprint(one.samples)[:16]}
            for one in sets
        },
        "task_versions": task_versions(tasks) if tasks else {},
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
