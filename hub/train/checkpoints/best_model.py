"""The model of the best evaluation, taken from its checkpoint as the result of a run."""

import json
import math
import shutil
from collections.abc import Callable

from hub.parallel.group import barrier, broadcast_text
from hub.run import Run
from hub.train.checkpoints.checkpoint import checkpoint_name, checkpoints, damage, read_state


def take_model_of(step: int, run: Run) -> bool:
    """Make the model of a checkpoint the result of the run: `model/` appears whole or not at all.

    All ranks must call it, and get the same answer.

    Args:
        step: the step of the checkpoint.
        run: the run folder.

    Returns:
        False: there is no such checkpoint any more, or it is damaged.
    """
    checkpoint = run.checkpoints_path / checkpoint_name(step)
    stored = checkpoint / "model"
    is_there = broadcast_text(str(stored.is_dir() and damage(checkpoint) is None) if run.is_main else "") == str(True)
    if is_there and run.is_main:
        aside = run.model_path.with_name(".model.partial")
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(stored, aside)
        shutil.rmtree(run.model_path, ignore_errors=True)
        aside.rename(run.model_path)
    barrier()
    return is_there


def take_best(step: int, score: float | None, run: Run, say: Callable[[str], object]) -> tuple[int, float | None] | None:
    """Make the best model the result of the run: that of a step, or if its checkpoint is gone the best one that is left.

    All ranks must call it, and get the same answer.

    Args:
        step: of the best evaluation.
        score: of the last model. Lower is better.
        run: the run folder.
        say: logs a line.

    Returns:
        The step that was taken, and its score if it is another one than asked for. None: there is none.
    """
    if take_model_of(step, run):
        return step, None
    other = best_stored(run, math.inf if score is None else score)
    if other is not None:
        say(f"algo.keep_best: the checkpoint of step {step} is gone. The best one that is left is of step {other[0]}")
        if take_model_of(other[0], run):
            return other
    say(
        f"algo.keep_best: the checkpoint of step {step if other is None else other[0]} is gone, so the result is the last model"
    )
    return None


def best_stored(run: Run, below: float) -> tuple[int, float] | None:
    """The best model that a checkpoint has, where that of the best evaluation could not be stored.

    All ranks must call it, and get the same answer.

    Args:
        run: the run folder.
        below: the score of the last model, which it must beat. Lower is better.

    Returns:
        Step and score. None: there is none.
    """
    found: list[tuple[float, int]] = []
    for folder in checkpoints(run.checkpoints_path) if run.is_main else ():
        try:
            state = read_state(folder)
        except (OSError, ValueError):  # damaged
            continue
        score = state.get("score")
        if score is None or not math.isfinite(score) or score >= below:
            continue
        if (folder / "model").is_dir() and damage(folder) is None:
            found.append((score, state["step"]))
    best: tuple[float, int] | None = json.loads(broadcast_text(json.dumps(min(found, default=None)))) or None
    return None if best is None else (best[1], best[0])
