"""From a RunConfig to a finished run: check everything, make the run folder, start the worker processes, read the result.

Nothing here imports torch. Workers read run.yaml; they never see the command line.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

from hub import runfile
from hub.algorithm import Backend
from hub.config import AUTO, RunConfig
from hub.data.read import check_rows
from hub.errors import ConfigError, HubError, Interrupted, LaunchError
from hub.plugins import registry
from hub.run import Failure, Result, Run
from hub.signals import STOP_SIGNALS

TRACKER_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


def launch(cfg: RunConfig, run_path: Path | None = None) -> Result:
    """Run a config to its end and return its result.

    Args:
        cfg: what to run; not yet checked.
        run_path: an existing, empty folder to run in (a job of a sweep). None: a new one in `output_dir`.

    Raises:
        HubError: what is wrong, in one line (or one line each). `exit_code` is what the command line ends with.
    """
    cfg, backend = prepare(cfg)
    run = Run(run_path) if run_path else Run.create(cfg.output_dir, cfg.run_name)
    run.config_file.write_text(runfile.to_text(cfg), encoding="utf-8")
    algorithm = registry().algorithm_of(cfg.algo).name
    print(f"hub: {algorithm} with backend {backend.name}, run folder {run.path}", flush=True)
    if cfg.launch.mode == "inline":
        from hub.worker import work

        return work(cfg, run)
    started = time.monotonic()
    exit_code = _run_workers(cfg, run)
    return _result(cfg, run, backend, exit_code, time.monotonic() - started)


def prepare(cfg: RunConfig) -> tuple[RunConfig, Backend]:
    """Check a config against this machine and fill in what `auto` means for the launch.

    Raises:
        ConfigError: all that is wrong with the options, in one go.
        HubError: of the backend, the data or the port, when the options themselves are right.
    """
    registry().algorithm_of(cfg.algo)
    if problems := cfg.problems():
        raise ConfigError(problems)
    cfg = _absolute(cfg)
    check_needs = cfg.launch.python is None
    backend, _ = registry().backend(cfg.algo, check_needs)
    nproc = cfg.launch.nproc_per_node
    nproc = num_visible_gpus() or 1 if nproc == AUTO else int(nproc)
    cfg = replace(cfg, launch=replace(cfg.launch, nproc_per_node=1 if cfg.launch.mode == "inline" else nproc))
    cfg = replace(cfg, algo=replace(cfg.algo, backend=backend.name))
    if problems := list(_machine_problems(cfg, check_needs)):
        raise ConfigError(problems)
    rows, complete = check_rows(cfg.data.path, cfg.data.format)
    if cfg.data.eval_path:
        check_rows(cfg.data.eval_path, cfg.data.format)
    if rows is not None and complete and (problem := _warmup_problem(cfg, rows)):
        raise ConfigError(problem)
    return cfg, backend


def num_visible_gpus() -> int:
    """GPUs that a worker would see, without asking torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([gpu for gpu in visible.split(",") if gpu.strip() and gpu.strip() != "-1"])
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines()) if listed.returncode == 0 else 0


def _absolute(cfg: RunConfig) -> RunConfig:
    """Workers may run in another folder or interpreter: make local paths absolute, and tiny data a file."""
    if cfg.data.path.startswith("tiny:"):
        from hub.testing import tiny_data_path

        cfg = replace(cfg, data=replace(cfg.data, path=str(tiny_data_path(cfg.data.path.removeprefix("tiny:")))))

    def full(path: Any) -> Any:
        return str(Path(path).expanduser().absolute()) if path and Path(path).expanduser().exists() else path

    data = replace(cfg.data, path=full(cfg.data.path), eval_path=full(cfg.data.eval_path), template=full(cfg.data.template))
    return replace(
        cfg,
        data=data,
        model=replace(cfg.model, path=full(cfg.model.path)),
        output_dir=str(Path(cfg.output_dir).expanduser().absolute()),
    )


def _machine_problems(cfg: RunConfig, check_needs: bool) -> Iterator[str]:
    nproc = int(cfg.launch.nproc_per_node)
    gpus = num_visible_gpus()
    if gpus and nproc > gpus:
        yield f"launch.nproc_per_node={nproc} but {gpus} GPU(s) are visible. Type launch.nproc_per_node={gpus}"
    world = nproc * cfg.launch.nnodes
    batch = cfg.algo.effective_batch_size
    if batch != AUTO and int(batch) < world:
        yield (
            f"algo.effective_batch_size={batch} is below the number of processes ({world}): "
            f"one of them would have nothing to do. Type algo.effective_batch_size={world} or launch.nproc_per_node={batch}"
        )
    if check_needs and "adamw_" in cfg.algo.optimizer and find_spec("bitsandbytes") is None:
        yield f"algo.optimizer={cfg.algo.optimizer} needs bitsandbytes. Type pip install bitsandbytes or algo.optimizer=adamw"
    package = TRACKER_PACKAGES.get(cfg.track.tool)
    if check_needs and package and find_spec(package) is None:
        yield f"track={cfg.track.tool} needs the package {package}. Type pip install {package} or track=none"
    if cfg.launch.rdzv_endpoint and cfg.launch.node_rank == 0:
        yield from _port_problem(cfg.launch.rdzv_endpoint)


def _port_problem(endpoint: str) -> Iterator[str]:
    host, _, port = endpoint.rpartition(":")
    try:
        address = socket.gethostbyname(host)
    except OSError:
        yield f"launch.rdzv_endpoint={endpoint}: the host {host} is not known. Type an address that all machines know"
        return
    with socket.socket() as probe:
        try:
            probe.bind((address, int(port)))
        except OSError as error:
            yield f"launch.rdzv_endpoint={endpoint}: port {port} can't be used here ({error.strerror}). Type another port"


def _warmup_problem(cfg: RunConfig, num_rows: int) -> str | None:
    batch, warmup = cfg.algo.effective_batch_size, cfg.algo.warmup_steps
    if batch == AUTO or warmup is None or cfg.algo.max_steps is not None:
        return None
    num_train = max(1, num_rows - round(num_rows * cfg.data.eval_fraction))
    num_steps = max(1, round(-(-num_train // int(batch)) * cfg.algo.num_epochs))
    if warmup < num_steps or warmup == 0:
        return None
    return (
        f"algo.warmup_steps={warmup} is not shorter than the run: {num_train} rows in batches of {batch} are {num_steps} "
        f"steps. Type e.g. algo.warmup_steps={num_steps // 10}"
    )


def _command(cfg: RunConfig, run: Run) -> list[str]:
    python = cfg.launch.python or sys.executable
    if int(cfg.launch.nproc_per_node) * cfg.launch.nnodes == 1:
        return [python, "-m", "hub.worker", str(run.path)]
    return [python, "-m", "hub.train.elastic", str(run.path)]


def _environment(cfg: RunConfig) -> dict[str, str]:
    env = dict(os.environ)
    nproc = int(cfg.launch.nproc_per_node)
    if nproc > 1 and "OMP_NUM_THREADS" not in env:
        env["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // nproc))
    env.setdefault("TOKENIZERS_PARALLELISM", "true" if nproc == 1 else "false")
    env["PYTHONUNBUFFERED"] = "1"
    return env


def _run_workers(cfg: RunConfig, run: Run) -> int:
    """Start the workers, pass signals on to them, show what they print, wait for them. Returns the exit code."""
    relay = sys.stdout is not sys.__stdout__
    try:
        child = subprocess.Popen(
            _command(cfg, run),
            env=_environment(cfg),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if relay else None,
            stderr=subprocess.STDOUT if relay else None,
            text=True,
            start_new_session=True,
        )
    except OSError as error:
        raise LaunchError(f"the worker can't be started: {error}") from None

    def forward(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    in_main_thread = _in_main_thread()
    before = {number: signal.signal(number, forward) for number in STOP_SIGNALS} if in_main_thread else {}
    try:
        if child.stdout is not None:
            for line in child.stdout:
                print(line, end="", flush=True)
        return child.wait()
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_main_thread() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()


def _result(cfg: RunConfig, run: Run, backend: Backend, exit_code: int, seconds: float) -> Result:
    """The result that rank 0 wrote, or the failure, written down for it if it could not."""
    if exit_code == 0 and run.result_file.is_file():
        return Result.read(run.result_file)
    failures = Failure.read_all(run)
    if failures:
        first = failures[0]
        message = first.message if first.exit_code != 1 else f"rank {first.rank} failed: {first.message} (see {first.file})"
        code, signal_number = first.exit_code, first.signal_number
    else:
        signal_number = -exit_code if exit_code < 0 else exit_code - 128 if exit_code > 128 else None
        name = f"signal {signal.Signals(signal_number).name}" if signal_number else f"exit code {exit_code}"
        message, code = f"the worker ended by {name} and left no message (out of memory on the host?)", 1
    if not run.result_file.is_file():
        status = "interrupted" if signal_number in STOP_SIGNALS else "failed"
        run.write_result(
            Result(
                status=status,
                algo=registry().algorithm_of(cfg.algo).name,
                backend=backend.name,
                model=cfg.model.path,
                run_path=run.path,
                seconds=round(seconds, 3),
                error=message,
            )
        )
    if signal_number in STOP_SIGNALS:
        assert signal_number is not None
        raise Interrupted(f"{message}. Run folder: {run.path}", signal_number)
    error: HubError = LaunchError(message)
    error.exit_code = code
    raise error
