"""Checks of what is to be measured, before anything slow is imported."""

import os
from collections.abc import Iterator

from hub.compose import runfile
from hub.config.evaluate import NONE, EvaluateConfig
from hub.config.option import AUTO
from hub.config.schema import RunConfig
from hub.errors import HubError
from hub.models.finished import run_folder
from hub.tasks.evaluate import harness_tasks, metrics


def problems(cfg: RunConfig) -> Iterator[str]:
    """One line for each metric, task, text or run that can't be measured."""
    wanted = cfg.evaluate
    yield from metrics.problems(wanted.metrics)
    yield from harness_tasks.problems(wanted.tasks)
    if wanted.retention not in (NONE, AUTO) and not _exists(wanted.retention):
        yield f"evaluate.retention={wanted.retention}: there is no such file. Type auto, none, or a file with texts"
    for run in wanted.also:
        try:
            data = runfile.read(run_folder(run, cfg.output_dir) / "run.yaml").data
        except HubError as error:
            yield str(error).replace("run=", "evaluate.also=", 1)
            continue
        if not (data.eval_path or data.eval_fraction):
            yield f"evaluate.also={run}: this run has no evaluation set. Leave it out"


def problems_in_training(cfg: RunConfig) -> Iterator[str]:
    """One line for each metric, task, text or run that can't be measured in a run that trains."""
    yield from problems(cfg)
    wanted = cfg.evaluate
    nothing = not (wanted.metrics or wanted.tasks or wanted.also) and wanted.retention == NONE
    if wanted.every_steps is not None and nothing:
        yield (
            f"evaluate.every_steps={wanted.every_steps}, but nothing is measured. Type e.g. evaluate.retention=auto or "
            "evaluate.metrics=[f1]. For the held-out loss type algo.eval_every_steps"
        )
    if wanted.metrics and not (cfg.data.eval_path or cfg.data.eval_fraction or wanted.also):
        yield (
            f"evaluate.metrics={','.join(wanted.metrics)} needs an evaluation set. Type data.eval_fraction=0.05 or "
            "data.eval_path=FILE"
        )
    yield from _of_the_choice(cfg)
    if cfg.launch.strategy in ("fsdp", "zero3") and (wanted.metrics or wanted.tasks):
        yield sharded_line(wanted, cfg.launch.strategy, "latest")


def sharded_line(wanted: EvaluateConfig, strategy: str, run: str) -> str:
    """The line on metrics and tasks of a run whose strategy shards the weights.

    Args:
        wanted: what is to be measured.
        strategy: of the run.
        run: as it is typed in `run=` after training.
    """
    words = [f"evaluate.{name}={','.join(getattr(wanted, name))}" for name in ("metrics", "tasks") if getattr(wanted, name)]
    needs, them = ("needs", "it") if len(words) == 1 else ("need", "them")
    return (
        f"{' and '.join(words)} {needs} all weights on each process, and launch.strategy={strategy} shards them. Type "
        f"launch.strategy=ddp if a GPU can hold the run. Else leave {them} out, and after training type python -m hub evaluate "
        f"run={run} {' '.join(words)}"
    )


def _of_the_choice(cfg: RunConfig) -> Iterator[str]:
    """One line if `algo.best_by` is nothing that is measured. Which figures a task of lm-eval has is known only later."""
    wanted, name = cfg.evaluate, cfg.algo.best_by
    known = ["loss", "perplexity", *wanted.metrics]
    if not cfg.algo.watches_evaluations or wanted.tasks or any(f"/{name}".endswith(f"/{one}") for one in known):
        return
    yield f"algo.best_by={name} is not measured. Allowed: {', '.join(known)}. To measure more type evaluate.metrics=[NAME]"


def _exists(path: str) -> bool:
    return os.path.exists(os.path.expanduser(path)) or path.startswith("tiny:") or "://" in path
