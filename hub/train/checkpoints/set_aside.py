"""Going on from an earlier checkpoint: the later ones are set aside, so that a run's `checkpoints/` has one history only.

`checkpoints/set-aside-1/` holds them, and `metrics.jsonl` as it was. Nothing there is removed, and a run goes on from one of
them as from any other.
"""

import json
import shutil
from itertools import count
from pathlib import Path

from hub.result import METRICS, read_metrics
from hub.run import Run
from hub.system.files import sync_file, sync_folder, write_text


def go_on_from(checkpoint: Path, step: int, run: Run) -> Path:
    """Make a checkpoint the newest of its run, and `metrics.jsonl` its history. On rank 0, once all ranks have read it.

    A kill in between loses nothing: what is not set aside yet is so by the next resume.

    Args:
        checkpoint: of the run, also one that was set aside.
        step: its step.
        run: the run folder.

    Returns:
        Where the checkpoint is now.
    """
    folder, place = run.checkpoints_path, run.checkpoints_path / checkpoint.name
    returns = checkpoint.parent != folder
    others = [path for path in sorted(folder.glob("step-*"), reverse=True) if returns or path.name > checkpoint.name]
    history = read_metrics(checkpoint.parent / METRICS if returns else run.metrics_file)
    if others:
        aside = _new_folder(run)
        if returns and place in others:
            place.rename(aside / place.name)  # makes room
        if returns:
            checkpoint.rename(place)
        for path in others:
            if path != place:
                path.rename(aside / path.name)
        sync_folder(aside)
        names = ", ".join(sorted(path.name for path in others))
        run.say(f"set aside in {aside}: {names}. To go on from there instead type resume={aside / others[0].name}")
    elif returns:
        checkpoint.rename(place)
    sync_folder(folder)
    write_text(run.metrics_file, "".join(json.dumps(line) + "\n" for line in history if line["step"] <= step))
    return place


def _new_folder(run: Run) -> Path:
    """A new folder for checkpoints that are set aside. It has the metrics of their history."""
    folders = (run.checkpoints_path / f"set-aside-{number}" for number in count(1))
    folder = next(folder for folder in folders if not folder.exists())
    folder.mkdir()
    if run.metrics_file.is_file():
        shutil.copyfile(run.metrics_file, folder / METRICS)
        sync_file(folder / METRICS)
    return folder
