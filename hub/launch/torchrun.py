"""`torchrun -m hub ...`, where the processes exist already.

Rank 0 composes and checks the config and makes the run folder. The other ranks get both from it: there is one config and
one folder, even if clocks or command lines differ.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hub.compose import runfile
from hub.config.option import AUTO
from hub.config.schema import LaunchConfig, RunConfig
from hub.errors import ConfigError
from hub.launch.lock import release
from hub.plugins.registry import resolve
from hub.result import Result
from hub.run import Run
from hub.system import timeline
from hub.system.saying import say_error


def join_group(overrides: list[str], config_dir: str | None, show: Callable[[Result], None]) -> int:
    """Train as one of torchrun's processes. Returns the exit code.

    Args:
        overrides: as typed.
        config_dir: as typed.
        show: called with the result, on rank 0.

    Raises:
        HubError: on rank 0 only. The other ranks return the same exit code and print nothing.
    """
    rank = int(os.environ["RANK"])
    clock = timeline.of_run(None)
    clock.begin("checks")
    message = _start(overrides, config_dir) if rank == 0 else None
    clock.begin("imports")

    from hub.parallel.group import broadcast_text, start_group
    from hub.system.signals import stop_request

    stop_request.install()
    start_group()
    message = json.loads(broadcast_text(json.dumps(message)))
    if message["is_complete"]:
        if rank == 0:
            show(Result.read(Run(Path(message["run_path"])).result_file))
        return 0
    run = Run(Path(message["run_path"]), is_main=rank == 0)
    clock.say = run.say if rank == 0 else None
    try:
        return _work(message["config"], run, rank, show)
    finally:
        clock.close()
        if lost := run.write_what_waits(runfile.from_text(message["config"]).launch.spare_dir):
            say_error(f"hub: {lost}")
        release(run.path)


def _work(config: str, run: Run, rank: int, show: Callable[[Result], None]) -> int:
    from hub.launch.worker import failure_of, work

    try:
        result = work(resolve(runfile.from_text(config)), run)
    except Exception as error:
        failure = failure_of(rank, error)
        run.write_failure(failure)
        if failure.traceback is not None:
            say_error(failure.traceback)
            time.sleep(0.5 if rank else 0)
        elif rank == 0:
            raise
        return failure.exit_code
    if rank == 0:
        from hub.launch.launcher import export_after

        export_after(runfile.from_text(config), result)
        show(result)
    return 0


def _start(overrides: list[str], config_dir: str | None) -> dict[str, Any]:
    from hub.compose.compose import compose
    from hub.launch.auto_resume import decide
    from hub.launch.preflight import prepare
    from hub.launch.resume import config_to_run, open_run

    cfg = compose(*overrides, config_dir=config_dir)
    if cfg.launch.cluster is not None:
        raise ConfigError(
            f"launch={cfg.launch.cluster}: a job starts the processes itself. Type python -m hub in place of torchrun"
        )
    grace = cfg.launch.grace_seconds
    if grace != LaunchConfig().grace_seconds:
        raise ConfigError(
            f"launch.grace_seconds={grace:g}: torchrun stops its own processes. Leave it out, and type torchrun "
            f"--shutdown-timeout={grace:.0f} (torch 2.12 and later; before, it is 30 s)"
        )
    if (wait := cfg.launch.rdzv_timeout_seconds) != LaunchConfig().rdzv_timeout_seconds:
        raise ConfigError(
            f"launch.rdzv_timeout_seconds={wait:g}: torchrun waits for the machines. Leave it out, and type torchrun "
            f"--rdzv-conf=join_timeout={wait:.0f}"
        )
    cfg, run_path, ended = decide(cfg)
    if ended is not None:
        return {"is_complete": True, "run_path": str(ended.run_path)}
    resolved = prepare(_as_started(config_to_run(cfg)))
    run = open_run(resolved, run_path)
    return {"is_complete": False, "config": runfile.to_text(resolved.config), "run_path": str(run.path)}


def _as_started(cfg: RunConfig) -> RunConfig:
    """Set the number of processes to those that torchrun started. An option that contradicts it is an error."""
    local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    if cfg.launch.nproc_per_node not in (AUTO, local):
        raise ConfigError(
            f"launch.nproc_per_node={cfg.launch.nproc_per_node} but torchrun started {local} here. "
            f"Leave it out, or type torchrun --nproc-per-node={cfg.launch.nproc_per_node}"
        )
    nnodes = world // local
    endpoint = os.environ["MASTER_ADDR"] + ":1" if nnodes > 1 else None
    return replace(cfg, launch=replace(cfg.launch, nproc_per_node=local, nnodes=nnodes, rdzv_endpoint=endpoint))
