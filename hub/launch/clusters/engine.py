"""What an engine of a cluster offers, and what the hub asks it for."""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hub.config.schema import RunConfig
from hub.errors import LaunchError


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run that a job will start on each of its machines."""

    cfg: RunConfig
    """The run with all its options, and those of the job in `launch`."""

    name: str
    """The run's name, and the job's."""

    words: tuple[str, ...]
    """The arguments of `python -m hub` on every machine. With several, each adds its rank and the address of the first."""

    summary: str
    """What is trained, for a comment in the job file."""

    @property
    def run_path(self) -> Path:
        """The run folder, as the machines of the job see it."""
        return Path(self.cfg.output_dir, self.name)

    @property
    def gpus(self) -> int:
        """GPUs of each machine."""
        launch = self.cfg.launch
        return int(launch.nproc_per_node) if launch.gpus_per_node is None else launch.gpus_per_node


@dataclass(frozen=True, kw_only=True)
class Started:
    """A job that an engine has accepted."""

    number: str
    """The engine's number or name of the job."""

    log: str
    """The command that shows its log."""

    cancel: str
    """The command that ends it."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """An engine of a cluster: a module here, and a preset in conf/launch/."""

    name: str
    """`launch=NAME`."""

    ending: str
    """Suffix of the job file, without a dot."""

    shares_disk: bool
    """Whether the job's machines see the folders of this one. If not, paths that only this machine has are refused."""

    problems: Callable[[RunConfig, str], Iterator[str]]
    """Yields a line for each option that this engine can't take, given the run and its name."""

    text: Callable[[Job], str]
    """Makes the job file."""

    submit: Callable[[Job, Path | None, str], Started]
    """Submits it: called with the job, the job file (None: no folder is shared) and its text.

    Raises:
        LaunchError: the engine is not installed here, or refuses the job.
    """


def paths_read(cfg: RunConfig) -> list[tuple[str, str]]:
    """Options of a run that name what it reads, each with its value. Some values are no paths, as an id of the model hub."""
    data = cfg.data
    named = [("model.path", cfg.model.path), ("model.adapter", cfg.model.adapter), ("data.path", data.path)]
    named += [("data.eval_path", data.eval_path)]
    named += [(f"data.mix[{number}].path", source.path) for number, source in enumerate(data.mix)]
    named += [("data.template", data.template), ("launch.deepspeed_config", cfg.launch.deepspeed_config)]
    own = {f"algo.{item.name}": getattr(cfg.algo, item.name) for item in fields(cfg.algo)}

    def of_the_algorithm(path: Any, option: str = "") -> Any:
        named.append((option or next((name for name, value in own.items() if value == path), "algo"), path))
        return path

    cfg.algo.with_paths(of_the_algorithm)
    return [(option, path) for option, path in named if path]


def name_problems(name: str) -> Iterator[str]:
    """Yield a line if the name of a run can't be part of a host's name, as Kubernetes and SkyPilot need."""
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", name):
        yield (
            f"run_name={name}: it is the name of the job too. Type one of at most 40 lower-case letters, digits and dashes "
            "that begins with a letter"
        )


def call(command: Sequence[str], job: str, hint: Callable[[str], str], install: str, stdin: str | None = None) -> str:
    """Call the program of an engine.

    Args:
        command: the program and its arguments.
        job: what is submitted, for messages.
        hint: takes what the program printed, and returns a sentence on what to type, or an empty text.
        install: a sentence on what to do if the program is not installed, without a period.
        stdin: the text that the program reads. None: nothing.

    Returns:
        What the program printed to standard output.

    Raises:
        LaunchError: the program is not installed, or ends with an error.
    """
    program = command[0]
    if shutil.which(program) is None:
        raise LaunchError(
            f"{job} needs {program}, which is not on this machine. {install}. launch.dry_run=true prints the job file"
        )
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise LaunchError(f"{job}: {program} refused the job: {said or f'exit code {done.returncode}'}. {hint(said)}".rstrip())
    return done.stdout
