"""Runs a RunConfig: makes the run folder, starts the workers, reads the result.

Nothing here imports torch. Workers read run.yaml, never the command line.
"""

import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from hub.compose import runfile
from hub.config.schema import RunConfig
from hub.errors import LOST_CONNECTION, HubError, Interrupted, LaunchError
from hub.launch.auto_resume import decide
from hub.launch.lock import release
from hub.launch.past_end import forget_end
from hub.launch.preflight import prepare
from hub.launch.resume import config_to_run, open_run
from hub.launch.workers import Forwarding, Workers
from hub.plugins.registry import ResolvedRun, warnings_shown
from hub.result import Result
from hub.run import Failure, Run
from hub.system import timeline
from hub.system.bytecode import bytecode_variables
from hub.system.cores import usable_cores
from hub.system.processes import Process
from hub.system.saying import say, say_error
from hub.system.signals import STARTED_BY, STOP_SIGNALS, signals_blocked, stop_request
from hub.system.small_files import small_files

_OF_THE_GROUP = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
"""What torchrun sets, which is not for a process that works alone."""

_trains_here = threading.RLock()
"""Held by the thread whose run trains in this process: torch has one random generator and one process group for all threads."""


def launch(cfg: RunConfig, run_path: Path | None = None) -> Result:
    """Run a config to its end and return its result.

    Args:
        cfg: the config, not yet checked.
        run_path: an existing, empty run folder (of a sweep's job). None: a new one in `output_dir`.

    Raises:
        HubError: what is wrong, one line each. Its `exit_code` is that of the command line.
    """
    if cfg.launch.cluster is not None:
        from hub.launch.clusters.submit import submit

        return submit(cfg)
    cfg, run_path, ended = decide(cfg, run_path)
    if ended is not None:
        return ended
    clock = timeline.of_run(say)
    clock.begin("checks")
    try:
        resolved = prepare(config_to_run(cfg))
    except BaseException:
        clock.close()
        raise
    is_inline = resolved.config.launch.mode == "inline"
    run: Run | None = None
    done: Result | None = None
    try:
        with Forwarding().installed() as signals:
            with signals_blocked():
                run = open_run(resolved, run_path)
                signals.log = run.note
                say(f"hub: {resolved.algorithm.name} with backend {resolved.backend.name}, run folder {run.path}")
                workers = None if is_inline else _start_workers(resolved.config, run, signals)
            if workers is not None:
                return _in_processes(resolved, run, workers, signals, keep_folder=run_path is not None)
        from hub.launch.worker import work
        from hub.system.memory import free_unused

        with _one_at_a_time(), stop_request.handled_here():
            clock.say = run.say
            free_unused()  # a run that failed in this process before has left its model
            try:
                done = work(resolved, run)
                free_unused()
                return export_after(resolved.config, done)
            except HubError as error:
                if run_path is None and not isinstance(error, Interrupted) and _found_no_model(resolved.config, run):
                    run.discard()
                raise
    finally:
        clock.close()
        if run is not None:
            disk = resolved.config.launch
            lost = run.write_what_waits(disk.spare_dir, disk.wait_for_disk_minutes if done else 0.0)
            release(run.path)
            if lost and done is not None:
                raise LaunchError(f"the run is done, but {lost}")
            if lost:
                say_error(f"hub: {lost}")


def _in_processes(resolved: ResolvedRun, run: Run, workers: Workers, signals: Forwarding, keep_folder: bool) -> Result:
    """Wait for the processes of a run and return its result."""
    started = time.monotonic()
    before = run.end_before.read_bytes() if run.end_before.is_file() else None
    exit_code = workers.wait()
    while exit_code and signals.stopped_by is None and (smaller := _in_smaller_micro_batches(resolved, run)):
        resolved = smaller
        with signals_blocked():
            workers = _start_workers(resolved.config, run, signals)
        exit_code = workers.wait()
    try:
        result = _result(resolved, run, exit_code, time.monotonic() - started, signals.stopped_by, before)
        return export_after(resolved.config, result, signals)
    finally:
        failures = Failure.read_all(run)
        refused = bool(failures) and all(one.traceback is None and one.signal_number is None for one in failures)
        found_none = refused and _found_no_model(resolved.config, run)
        if not keep_folder and (found_none or not _has_begun(resolved.config, run) or _is_handed_on(resolved.config, run)):
            run.discard()


def export_after(cfg: RunConfig, result: Result, signals: Forwarding | None = None) -> Result:
    """Export the model of a run that is completed, as `export.to` asks, in a process of its own. Returns the result.

    Args:
        cfg: the config of the run.
        result: the result of the run.
        signals: passes signals on. None: they are left to their handlers.

    Raises:
        LaunchError: the export failed. The model is trained and saved.
    """
    if not cfg.export.to or result.status != "completed" or cfg.launch.node_rank > 0:
        return result
    words = [f"run={result.run_path}", *([f"python={cfg.export.python}"] if cfg.export.python else [])]
    env = {name: value for name, value in os.environ.items() if name not in _OF_THE_GROUP} | warnings_shown()
    command = [cfg.launch.python or sys.executable, "-m", "hub", "export", *words]
    signals = signals or Forwarding()
    code = 128 + signals.stopped_by if signals.stopped_by is not None else None
    if code is None:
        code = Workers(command, env | {"PYTHONUNBUFFERED": "1"}, signals).wait()
    if code:
        typed = shlex.join(["python", "-m", "hub", "export", *words])
        error = LaunchError(
            f"the model is trained and saved in {result.model_path}, but its export failed (exit code {code}, see above). To "
            f"try again type {typed}"
        )
        error.outcome = result
        raise error
    return result


def _is_handed_on(cfg: RunConfig, run: Run) -> bool:
    """Whether this is the folder by which a machine other than the first handed its config to its workers, and none failed."""
    return cfg.launch.node_rank > 0 and not Failure.read_all(run)


def _found_no_model(cfg: RunConfig, run: Run) -> bool:
    """Whether a new run ended before it had its base weights: then its folder says nothing that its error does not."""
    return cfg.resume is None and "base_model_path" not in run.plan()


def _has_begun(cfg: RunConfig, run: Run) -> bool:
    """Whether a worker ran. Of several machines, one may have waited for the others in vain."""
    return cfg.launch.nnodes == 1 or run.joined_file.is_file() or "algorithm" in run.plan()


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Wait until no other thread trains in this process."""
    if not _trains_here.acquire(blocking=False):
        say("hub: another thread trains in this process (launch.mode=inline). This run waits for its end")
        _trains_here.acquire()
    try:
        yield
    finally:
        _trains_here.release()


def _command(cfg: RunConfig, run: Run) -> list[str]:
    python = cfg.launch.python or sys.executable
    if int(cfg.launch.nproc_per_node) * cfg.launch.nnodes == 1 and cfg.launch.rdzv_endpoint is None:
        return [python, "-m", "hub.launch.worker", str(run.path)]
    return [python, "-m", "hub.launch.elastic", str(run.path)]


def _environment(cfg: RunConfig) -> dict[str, str]:
    env = os.environ | warnings_shown()
    nproc = int(cfg.launch.nproc_per_node)
    if nproc > 1 and "OMP_NUM_THREADS" not in env:
        env["OMP_NUM_THREADS"] = str(max(1, usable_cores() // nproc))
    env.setdefault("TOKENIZERS_PARALLELISM", "true" if nproc == 1 else "false")
    if "PYTORCH_CUDA_ALLOC_CONF" not in env:
        env.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # less fragmentation with micro-batches of many sizes
    if cfg.launch.python is None:
        env |= bytecode_variables(env)
    env["PYTHONUNBUFFERED"] = "1"
    env[STARTED_BY] = str(Process.this())
    env["PYTHONSAFEPATH"] = "1"  # else a file torch.py in the current folder would be imported
    if cfg.algo.deterministic:
        env["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # required by torch's deterministic mode
    return env


def _start_workers(cfg: RunConfig, run: Run, signals: Forwarding) -> Workers:
    try:
        return Workers(_command(cfg, run), _environment(cfg) | timeline.handed_over(), signals)
    except OSError as error:
        raise LaunchError(f"the worker can't be started: {error}") from None


def _in_smaller_micro_batches(resolved: ResolvedRun, run: Run) -> ResolvedRun | None:
    """The run to start again after an out-of-memory error that could not be retried in place, where ranks wait for each other.

    Steps do not depend on the size of micro-batches, so the result stays the same. None on several machines: these must be
    started again together, by the user.
    """
    cfg = resolved.config
    bounds = [failure.smaller_bound for failure in Failure.read_all(run) if failure.smaller_bound]
    if not bounds or cfg.launch.nnodes > 1:
        return None
    has_checkpoint = run.has_checkpoint
    start = "from the last checkpoint" if has_checkpoint else "from the beginning"
    say(
        f"hub: out of memory. The run restarts {start} in micro-batches of at most {min(bounds)} tokens, with the same "
        f"result. Next time type algo.max_tokens_per_gpu={min(bounds)}"
    )
    if not has_checkpoint:
        run.metrics_file.unlink(missing_ok=True)
    forget_end(run)
    algo = replace(cfg.algo, max_tokens_per_gpu=min(bounds))
    cfg = replace(cfg, algo=algo, resume=str(run.path) if has_checkpoint else None)
    run.config_file.write_text(runfile.to_text(cfg), encoding="utf-8")
    return replace(resolved, config=cfg)


def _result(
    resolved: ResolvedRun, run: Run, exit_code: int, seconds: float, stopped_by: int | None = None, before: bytes | None = None
) -> Result:
    """The result of rank 0. If it could write none, the failure is written for it.

    Args:
        resolved: what ran.
        run: the run folder.
        exit_code: of the processes.
        seconds: how long they ran.
        stopped_by: the signal to stop that this process has passed on.
        before: the result that a resumed run had. If it is there again, the run could not be resumed, and it stays.
    """
    result_file = run.result_file
    if not result_file.is_file() and (spare := run.spare(resolved.config.launch.spare_dir)) is not None:
        result_file = spare / result_file.name  # the disk was full at the end
    if stopped_by is not None and exit_code == -signal.SIGKILL:
        exit_code = 128 + stopped_by  # somebody lost patience
    is_signal = exit_code < 0 or exit_code - 128 in STOP_SIGNALS
    if is_signal and result_file.is_file() and Result.read(result_file).status in ("completed", "verified"):
        exit_code = 0  # it came when all was done
    if exit_code == 0 and run.joined_file.is_file():
        result_file = Run(Path(run.joined_file.read_text(encoding="utf-8"))).result_file
    if exit_code == 0 and result_file.is_file():
        return Result.read(result_file)
    # If one rank is killed without a report, the others are ended by a signal; then the exit code is not that of the signal.
    failures = [one for one in Failure.read_all(run) if one.signal_number in (None, exit_code - 128)]
    if failures:
        first = failures[0]
        message, code, signal_number = first.text, first.exit_code, first.signal_number
    else:
        signal_number = -exit_code if exit_code < 0 else exit_code - 128 if exit_code > 128 else None
        if signal_number in STOP_SIGNALS:
            message = f"stopped by {signal.Signals(signal_number).name}"
        else:
            names = {number.value: f"signal {number.name}" for number in signal.Signals}
            how = names.get(signal_number or 0, f"exit code {exit_code}")
            message = f"the worker ended by {how} and left no report (out of CPU memory?)"
            if (refused := small_files.probe(run.path)) is not None:
                message = f"{run.path} can't be written ({refused.strerror}). The worker ended by {how} without a report there"
        code = 1
    stopped = signal_number in STOP_SIGNALS
    result = Result.read(result_file) if result_file.is_file() else None
    is_restored = result is not None and result_file.read_bytes() == before
    ended_by_other = result is not None and (result.status == "interrupted" or result.error == LOST_CONNECTION)
    if result is not None and ended_by_other and not stopped and not is_restored:
        # Rank 0 was ended by a signal, or by a lost connection, because another rank had failed.
        run.write_result(replace(result, status="failed", error=message))
    if result is None:
        run.write_result(
            Result(
                status="interrupted" if stopped else "failed",
                algo=resolved.algorithm.name,
                backend=resolved.backend.name,
                model=resolved.config.model.path,
                run_path=run.path,
                seconds=round(seconds, 3),
                error=message,
                **run.reached(),
            )
        )
    if signal_number in STOP_SIGNALS:
        assert signal_number is not None
        where = f". Run folder: {run.path}" if _has_begun(resolved.config, run) else ""
        raise Interrupted(message + where, signal_number)
    error: HubError = LaunchError(message)
    error.exit_code = code
    raise error
