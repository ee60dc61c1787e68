"""From a RunConfig to a finished run: check everything, make the run folder, start the workers, read the result.

Nothing here imports torch. Workers read run.yaml; they never see the command line.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

from hub.algorithm import Backend
from hub.config import AUTO, PARTS, AlgoConfig, RunConfig, field_problems
from hub.data.read import check_rows, num_held_out
from hub.errors import ConfigError, HubError, Interrupted, LaunchError, ModelError, PluginError, did_you_mean
from hub.plugins import registry
from hub.resume import open_run, recall
from hub.run import Failure, Result, Run
from hub.signals import STOP_SIGNALS, held_back
from hub.testing import FAMILIES, tiny_data_path
from hub.train.batches import auto_batch_size, num_steps

TINY = "tiny:"
BITSANDBYTES_OPTIMIZERS = ("adamw_8bit", "paged_adamw", "paged_adamw_8bit")
TRACKER_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


def launch(cfg: RunConfig, run_path: Path | None = None) -> Result:
    """Run a config to its end and return its result.

    Args:
        cfg: what to run; not yet checked.
        run_path: an existing, empty folder to run in (a job of a sweep). None: a new one in `output_dir`.

    Raises:
        HubError: what is wrong, in one line (or one line each). `exit_code` is what the command line ends with.
    """
    cfg, backend = prepare(recall(cfg))
    with held_back():
        run = open_run(cfg, run_path)
        algorithm = registry().algorithm_of(cfg.algo).name
        print(f"hub: {algorithm} with backend {backend.name}, run folder {run.path}", flush=True)
        workers = None if cfg.launch.mode == "inline" else _start_workers(cfg, run)
    if workers is None:
        from hub.worker import work

        return work(cfg, run)
    started = time.monotonic()
    exit_code = workers.wait()
    return _result(cfg, run, backend, exit_code, time.monotonic() - started)


def prepare(cfg: RunConfig) -> tuple[RunConfig, Backend]:
    """Check a config against this machine and fill in what `auto` means for the launch.

    Raises:
        HubError: of the option, backend or data that is wrong; a ConfigError with all lines when it is more than one.
    """
    errors: list[HubError] = [ConfigError(line) for line in cfg.problems()]
    checked = {name: not list(field_problems(getattr(cfg, name), name)) for name in PARTS}
    check_needs = cfg.launch.python is None
    backend = None
    if type(cfg.algo) is not AlgoConfig:
        try:
            backend, _ = registry().backend(cfg.algo, check_needs)
            cfg = replace(cfg, algo=replace(cfg.algo, backend=backend.name))
        except PluginError as error:
            errors.append(error)
    num_rows = None
    try:
        _check_tiny_model(cfg)
    except ModelError as error:
        errors.append(error)
    try:
        cfg = _absolute(cfg)
        if cfg.task == "verify" and cfg.model.dtype == AUTO:
            # Rounding in bfloat16 would hide what a proof looks for.
            cfg = replace(cfg, model=replace(cfg.model, dtype="float32"))
        num_rows = _check_data(cfg) if checked["data"] else None
    except HubError as error:
        errors.append(error)
    if checked["launch"]:
        nproc = num_visible_gpus() or 1 if cfg.launch.nproc_per_node == AUTO else int(cfg.launch.nproc_per_node)
        one = cfg.launch.mode == "inline" or cfg.launch.strategy == "split"
        cfg = replace(cfg, launch=replace(cfg.launch, nproc_per_node=1 if one else nproc))
        errors += [ConfigError(line) for line in _machine_problems(cfg)]
    if check_needs:
        errors += [ConfigError(line) for line in _missing_packages(cfg)]
    if num_rows is not None and checked["algo"] and (problem := _warmup_problem(cfg, num_rows)):
        errors.append(ConfigError(problem))
    if len(errors) > 1:
        raise ConfigError(dict.fromkeys(line for error in errors for line in str(error).splitlines()))
    if errors:
        raise errors[0]
    assert backend is not None
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

    def full(path: Any) -> Any:
        if path and path.startswith(TINY):
            return str(tiny_data_path(path.removeprefix(TINY)))
        return str(Path(path).expanduser().absolute()) if path and Path(path).expanduser().exists() else path

    data, model = cfg.data, cfg.model
    return replace(
        cfg,
        data=replace(data, path=full(data.path), eval_path=full(data.eval_path), template=full(data.template)),
        model=model if model.path.startswith(TINY) else replace(model, path=full(model.path)),
        output_dir=str(Path(cfg.output_dir).expanduser().absolute()),
    )


def _check_tiny_model(cfg: RunConfig) -> None:
    family = cfg.model.path.removeprefix(TINY)
    if cfg.model.path.startswith(TINY) and family not in FAMILIES:
        near = did_you_mean(family, FAMILIES) or f" Allowed: {', '.join(FAMILIES)}"
        raise ModelError(f"model.path={cfg.model.path}: there is no tiny model of this family.{near}")


def _check_data(cfg: RunConfig) -> int | None:
    """Number of rows to train and to evaluate on; None when that takes more than a look."""
    if cfg.data.eval_path:
        check_rows(cfg.data.eval_path, cfg.data.format)
    if not cfg.data.path:
        return None
    num_rows, complete = check_rows(cfg.data.path, cfg.data.format)
    return num_rows if complete else None


def _machine_problems(cfg: RunConfig) -> Iterator[str]:
    nproc = int(cfg.launch.nproc_per_node)
    gpus = num_visible_gpus()
    if gpus and nproc > gpus:
        yield f"launch.nproc_per_node={nproc} but {gpus} GPU(s) are visible. Type launch.nproc_per_node={gpus}"
    if cfg.launch.strategy == "split" and gpus < 2:
        yield f"launch.strategy=split spreads the layers over several GPUs, but {gpus} are visible. Type launch.strategy=auto"
    world = nproc * cfg.launch.nnodes
    batch = cfg.algo.effective_batch_size
    if isinstance(batch, int) and 0 < batch < world:
        yield (
            f"algo.effective_batch_size={batch} is below the number of processes ({world}): "
            f"one of them would have nothing to do. Type algo.effective_batch_size={world} or fewer processes"
        )
    if cfg.launch.rdzv_endpoint and cfg.launch.node_rank == 0:
        yield from _port_problem(cfg.launch.rdzv_endpoint)


def _missing_packages(cfg: RunConfig) -> Iterator[str]:
    if cfg.algo.optimizer in BITSANDBYTES_OPTIMIZERS and find_spec("bitsandbytes") is None:
        yield (f"algo.optimizer={cfg.algo.optimizer} needs bitsandbytes. Type pip install bitsandbytes or algo.optimizer=adamw")
    package = TRACKER_PACKAGES.get(cfg.track.tool)
    if package and find_spec(package) is None:
        yield f"track={cfg.track.tool} needs the package {package}. Type pip install {package} or track=none"


def _port_problem(endpoint: str) -> Iterator[str]:
    host, _, port = endpoint.rpartition(":")
    if not (host and port.isdigit() and 0 < int(port) < 65536):
        return
    try:
        address = socket.gethostbyname(host)
    except OSError:
        yield f"launch.rdzv_endpoint={endpoint}: the host {host} is not known. Type an address that all machines know"
        return
    with socket.socket() as probe:
        try:
            probe.bind((address, int(port)))
        except OSError as error:
            yield f"launch.rdzv_endpoint={endpoint}: this port can't be used ({error.strerror}). Type another"


def _warmup_problem(cfg: RunConfig, num_rows: int) -> str | None:
    """Whether the warm-up ends within the run, now that the number of rows is known."""
    warmup = cfg.algo.warmup_steps
    if not warmup or cfg.algo.max_steps is not None:
        return None
    held_out = num_held_out(num_rows, cfg.data.eval_fraction)
    num_train = num_rows - held_out
    batch = cfg.algo.effective_batch_size
    batch = auto_batch_size(num_train) if batch == AUTO else int(batch)
    total = num_steps(num_train, batch, cfg.algo.num_epochs, None)
    if warmup < total:
        return None
    return (
        f"algo.warmup_steps={warmup} is not shorter than the run: {num_train} rows in batches of {batch} are {total} "
        f"steps. Type e.g. algo.warmup_steps={total // 10}"
    )


def _command(cfg: RunConfig, run: Run) -> list[str]:
    python = cfg.launch.python or sys.executable
    if int(cfg.launch.nproc_per_node) * cfg.launch.nnodes == 1 and cfg.launch.rdzv_endpoint is None:
        return [python, "-m", "hub.worker", str(run.path)]
    return [python, "-m", "hub.train.elastic", str(run.path)]


def _environment(cfg: RunConfig) -> dict[str, str]:
    env = dict(os.environ)
    nproc = int(cfg.launch.nproc_per_node)
    if nproc > 1 and "OMP_NUM_THREADS" not in env:
        env["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // nproc))
    env.setdefault("TOKENIZERS_PARALLELISM", "true" if nproc == 1 else "false")
    env["PYTHONUNBUFFERED"] = "1"
    env["PYTHONSAFEPATH"] = "1"  # else a file torch.py in the folder where the command was typed would be imported
    if cfg.algo.deterministic:
        env["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # torch's deterministic mode asks for it
    return env


class _Workers:
    """The processes of a run, as one child: signals are passed on to it, and what it prints is shown."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        # In a notebook or under a test's capture, what the child writes to the terminal would not be seen.
        relay = sys.stdout is not sys.__stdout__
        self._child = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if relay else None,
            stderr=subprocess.STDOUT if relay else None,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        self._handlers: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._forward) for number in STOP_SIGNALS}

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self._child.send_signal(number)

    def wait(self) -> int:
        """Wait for the end. Returns the exit code."""
        try:
            for line in self._child.stdout or ():
                print(line, end="", flush=True)
            return self._child.wait()
        finally:
            if self._child.poll() is None:
                self._child.terminate()
                self._child.wait()
            for number, handler in self._handlers.items():
                signal.signal(number, handler)


def _start_workers(cfg: RunConfig, run: Run) -> _Workers:
    try:
        return _Workers(_command(cfg, run), _environment(cfg))
    except OSError as error:
        raise LaunchError(f"the worker can't be started: {error}") from None


def _result(cfg: RunConfig, run: Run, backend: Backend, exit_code: int, seconds: float) -> Result:
    """The result that rank 0 wrote, or the failure, written down for it if it could not."""
    if exit_code == 0 and run.result_file.is_file():
        return Result.read(run.result_file)
    failures = Failure.read_all(run)
    if failures:
        first = failures[0]
        # What was foreseen (a HubError) says all itself.
        message = first.message
        if first.traceback is not None:
            message = f"rank {first.rank} failed: {message} (see {first.file})"
        code, signal_number = first.exit_code, first.signal_number
    else:
        signal_number = -exit_code if exit_code < 0 else exit_code - 128 if exit_code > 128 else None
        if signal_number in STOP_SIGNALS:
            message = f"stopped by {signal.Signals(signal_number).name}"
        else:
            names = {number.value: f"signal {number.name}" for number in signal.Signals}
            how = names.get(signal_number or 0, f"exit code {exit_code}")
            message = f"the worker ended by {how} and left no message (out of memory on the host?)"
        code = 1
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
