"""`resume=auto`: begin the run of a name if there is none yet, else go on with it. The same command for a job queued again."""

import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from hub.compose import runfile
from hub.config.schema import RunConfig
from hub.errors import ConfigError
from hub.result import Result
from hub.run import Run

AUTO = "auto"


class Decided(NamedTuple):
    """What `resume=auto` means here."""

    cfg: RunConfig
    """The config with `resume` as the user would have typed it."""

    run_path: Path | None = None
    """The folder to begin in: of a run that has no checkpoint."""

    result: Result | None = None
    """That of a run that is complete: nothing is left to do."""


def decide(cfg: RunConfig, run_path: Path | None = None) -> Decided:
    """Look for the run that `resume=auto` asks for. Any other config is returned as it is.

    Args:
        cfg: as composed.
        run_path: folder of a sweep's job.

    Raises:
        ConfigError: the run has no name, or its folder is something else.
    """
    if cfg.resume != AUTO or not cfg.chosen_task.takes_steps:
        return Decided(cfg, run_path)
    if run_path is not None:
        raise ConfigError("resume=auto is for a single run, not for a sweep. Leave it out")
    if cfg.run_name is None:
        raise ConfigError("resume=auto finds the run by its name. Type run_name=NAME too, or resume=latest")
    run = Run(Path(os.path.expanduser(cfg.output_dir), cfg.run_name).absolute())
    new = replace(cfg, resume=None)
    if not run.path.exists() or (cfg.launch.node_rank > 0 and not run.config_file.is_file()):  # machine 0 may be making it
        return Decided(new)
    if not run.config_file.is_file():
        if run.path.is_dir() and not any(run.path.iterdir()):  # it was killed while it began
            return Decided(new, run.path)
        raise ConfigError(f"run_name={cfg.run_name}: {run.path} exists and is no run folder. Type another run_name")
    before = runfile.read(run.config_file).chosen_task
    if not before.takes_steps:
        raise ConfigError(f"run_name={cfg.run_name}: {run.path} was {before.status}, not trained. Type another run_name")
    if run.result_file.is_file() and (result := Result.read(run.result_file)).status == "completed":
        print(f"hub: run_name={cfg.run_name}: this run is complete. Its model is in {result.model_path}", flush=True)
        return Decided(new, result=result)
    if cfg.launch.node_rank > 0:  # machine 0 decides, and gives its config to this one
        return Decided(new)
    if run.has_checkpoint:
        return Decided(replace(cfg, resume=str(run.path)))
    print(f"hub: resume=auto: {run.path} has no checkpoint, so the run begins anew there", flush=True)
    return Decided(new, run.path)
