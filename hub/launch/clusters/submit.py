"""Submits a run to a cluster: checks it here, writes the job file, calls the engine. Nothing here imports torch."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path

from hub.compose.compose import compose
from hub.compose.typed import typed, value_as_typed
from hub.config.cluster import ClusterOptions
from hub.config.paths import file_kind
from hub.config.schema import AlgoConfig, RunConfig
from hub.errors import ConfigError, can_not_write
from hub.launch.auto_resume import AUTO
from hub.launch.clusters.engine import Engine, Job, paths_read
from hub.launch.clusters.kubernetes import ENGINE as KUBERNETES
from hub.launch.clusters.skypilot import ENGINE as SKYPILOT
from hub.launch.clusters.slurm import ENGINE as SLURM
from hub.launch.preflight import prepare
from hub.plugins.registry import HERE, data_format_names, registry
from hub.result import Submitted
from hub.system.files import make_folder, write_text
from hub.system.saying import say_error

ENGINES: dict[str, Engine] = {engine.name: engine for engine in (SLURM, KUBERNETES, SKYPILOT)}
"""The engines by name."""

FOLDER = "jobs"
"""The folder in `output_dir` with the files and logs of jobs."""


def submit(cfg: RunConfig) -> Submitted:
    """Submit a run as a job of `launch.cluster`. With `launch.dry_run` only the job file is made.

    Args:
        cfg: the run, not yet checked.

    Returns:
        The job: where its log and its run folder will be.

    Raises:
        HubError: what is wrong, one line each; a LaunchError if the engine refuses the job.
    """
    engine = ENGINES.get(str(cfg.launch.cluster))
    if engine is None or type(cfg.algo) is AlgoConfig:
        raise ConfigError(cfg.problems(data_formats=data_format_names()))
    algorithm = registry().algorithm_of(cfg.algo)
    if registry().owners.get(algorithm.name) == HERE:
        raise ConfigError(
            f"algo={algorithm.name} is defined in this process, and no machine of a job can import it. Put it into a plugin "
            "(docs/plugins.md)"
        )
    name = cfg.run_name or f"{datetime.now():job-%Y%m%d-%H%M%S}"
    cfg = replace(cfg, run_name=name)
    problems = [*_problems(cfg, engine.shares_disk), *_resume_problem(cfg), *engine.problems(cfg, name)]
    problems += [] if engine.shares_disk else _local_paths(cfg)
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    if engine.shares_disk:
        cfg = replace(cfg, output_dir=os.path.expanduser(cfg.output_dir))
    words, backend = _words(cfg), cfg.algo.backend
    started_there = compose(*words)
    if engine.shares_disk:
        backend = prepare(replace(started_there, resume=None), here=False).backend.name
    job = Job(cfg=cfg, name=name, words=words, summary=f"{algorithm.name} of {cfg.model.path}")
    text = engine.text(job)
    file = _write(job, engine, text) if engine.shares_disk else None
    result = Submitted(
        status="written",
        algo=algorithm.name,
        backend=backend,
        model=cfg.model.path,
        run_path=job.run_path,
        job=text,
        job_file=file,
        volume=next((name for folder, name in cfg.launch.volumes.items() if job.run_path.is_relative_to(folder)), ""),
    )
    if cfg.launch.dry_run:
        say_error(f"hub: {f'the job file is {file}' if file else 'this is the job file'}. Nothing is submitted")
        return result
    started = engine.submit(job, file, text)
    if cfg.chosen_task.takes_steps and not cfg.algo.saves_regularly:
        say_error(
            "hub: algo.save_every_steps is not set, so a machine that breaks costs all steps since the last stop of the job"
        )
    return replace(result, status="submitted", job_number=started.number, log=started.log, cancel=started.cancel)


def _words(cfg: RunConfig) -> tuple[str, ...]:
    """The words of the run on each machine: its options without those of the job, and with `resume=auto` if it trains."""
    plain = ClusterOptions()
    of_the_job = {item.name: getattr(plain, item.name) for item in fields(ClusterOptions)}
    run = replace(cfg, launch=replace(cfg.launch, **of_the_job, nnodes=1), resume=AUTO if cfg.chosen_task.takes_steps else None)
    return tuple(typed(run))


def _resume_problem(cfg: RunConfig) -> Iterator[str]:
    if cfg.resume not in (None, AUTO):
        yield f"resume={cfg.resume}: a job resumes the run of its own name. Type run_name=NAME, and leave resume out"
    if cfg.resume_with_changes:
        yield "resume_with_changes=true is for one start, and a job may start often. Leave it out, or resume without a cluster"


def _without_paths(cfg: RunConfig) -> RunConfig:
    """The config for checks here, without paths that only the job's machines have. `_local_paths` checks these."""
    model, launch = cfg.model, cfg.launch
    path = "organization/model" if _is_local(model.path, "model.path") else model.path
    return replace(cfg, model=replace(model, path=path), launch=replace(launch, python=None, deepspeed_config=None))


def _local_paths(cfg: RunConfig) -> Iterator[str]:
    """One line for each path of this machine that the job's machines do not see: it is in none of their volumes."""
    named = [("output_dir", cfg.output_dir), *paths_read(cfg), ("launch.spare_dir", cfg.launch.spare_dir or "")]
    volumes = cfg.launch.volumes
    for option, path in named:
        if not path or not _is_local(path, option) or _is_in(path, volumes):
            continue
        if not volumes:
            yield (
                f"{option}={path}: the machines of the job see their volumes only, and there are none. Type "
                "'launch.volumes={/runs:NAME}' with a claim, a volume or a bucket, and paths that begin with /runs"
            )
        else:
            yield (
                f"{option}={path}: the machines of the job see {', '.join(volumes)} only (launch.volumes). Copy it there, and "
                f"type {option}={sorted(volumes)[0]}/{Path(path).name}"
            )


def _problems(cfg: RunConfig, shares_disk: bool) -> list[str]:
    """What is wrong with the run. What lies in a volume can't be looked for here, so that it is not here is no problem."""
    if shares_disk:
        return cfg.problems(data_formats=data_format_names())
    elsewhere = tuple(f"{option}={path}: " for option, path in paths_read(cfg) if _is_in(path, cfg.launch.volumes))
    problems = _without_paths(cfg).problems(data_formats=data_format_names())
    return [line for line in problems if not line.startswith(elsewhere)]


def _is_in(path: str, folders: Iterable[str]) -> bool:
    return any(Path(path).is_relative_to(folder) for folder in folders)


def _is_local(path: str, option: str) -> bool:
    """Whether a value is a path on a disk, not an id of the model hub and not a name like tiny:llama."""
    if option == "output_dir" or path.startswith(("/", ".", "~")):
        return True
    return ":" not in path and (os.path.exists(path) or bool(file_kind(Path(path))))


def _write(job: Job, engine: Engine, text: str) -> Path:
    file = Path(job.cfg.output_dir, FOLDER, f"{job.name}.{engine.ending}")
    try:
        make_folder(file.parent)
        write_text(file, text)
    except OSError as error:
        raise can_not_write(file.parent, error) from None
    return file


def lines(result: Submitted) -> list[str]:
    """What is printed of a job: its file after a dry run, else where its log and its result will be."""
    if result.job_number is None:
        return [result.job.rstrip("\n")]
    shown = result.rows()
    if not result.volume:
        shown.append(("its report", f"python -m hub report run={value_as_typed(str(result.run_path))}"))
    return [f"{name}: {value}" for name, value in shown]
