"""The model of the best evaluation, taken from its checkpoint as the result of a run."""

import shutil

from hub.parallel.group import barrier, broadcast_text
from hub.run import Run
from hub.train.checkpoints.checkpoint import checkpoint_name


def take_model_of(step: int, run: Run) -> bool:
    """Make the model of a checkpoint the result of the run: `model/` appears whole or not at all.

    All ranks must call it, and get the same answer.

    Args:
        step: the step of the checkpoint.
        run: the run folder.

    Returns:
        False: there is no such checkpoint any more.
    """
    stored = run.checkpoints_path / checkpoint_name(step) / "model"
    is_there = broadcast_text(str(stored.is_dir()) if run.is_main else "") == str(True)
    if is_there and run.is_main:
        aside = run.model_path.with_name(".model.partial")
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(stored, aside)
        shutil.rmtree(run.model_path, ignore_errors=True)
        aside.rename(run.model_path)
    barrier()
    return is_there
