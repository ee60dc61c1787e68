"""Several worker processes on this machine, by torch's elastic agent: `python -m hub.launch.elastic RUN_FOLDER`.

torchrun uses the same agent: it sets RANK, WORLD_SIZE and the rendezvous, and ends all workers if one of them dies.
"""

import logging
import os
import signal
import sys
import time
import uuid
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from torch.distributed.elastic.agent.server.api import DEFAULT_ROLE, RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from hub.compose import runfile
from hub.config.schema import LaunchConfig
from hub.errors import HubError
from hub.launch.ending import write_interrupted
from hub.launch.rendezvous import Rendezvous, interruptible
from hub.plugins.registry import warnings_shown
from hub.run import Failure, Run
from hub.system.processes import Process
from hub.system.signals import STARTED_BY, STOP_SIGNALS, end_with_parent, signals_blocked


class Agent(LocalElasticAgent):  # type: ignore[misc]  # torch gives it no types
    """Torch's agent, with a configurable grace period after a signal, and signals while it waits for other machines.

    Torch waits 30 s after a signal, and has an option for it from version 2.12 on only. If a worker fails, the others still get
    30 s.
    """

    def __init__(self, spec: WorkerSpec, grace_seconds: float) -> None:
        """Args:
        spec: the processes to start.
        grace_seconds: time from the first signal until processes are killed. A second signal kills them at once.
        """
        super().__init__(spec, DefaultLogsSpecs())
        self.grace_seconds = grace_seconds

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        handler = worker_group.spec.rdzv_handler
        watch = handler.watch if isinstance(handler, Rendezvous) else lambda: None
        interruptible(partial(super()._rendezvous, worker_group), watch)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        with signals_blocked():
            workers: dict[int, Any] = super()._start_workers(worker_group)
        return workers

    def _exit_barrier(self) -> None:
        with suppress(SignalException):  # this machine is done: a signal only ends the wait for the others
            interruptible(super()._exit_barrier)

    def _invoke_run(self, role: str = DEFAULT_ROLE) -> RunResult:
        try:
            return super()._invoke_run(role)
        except SignalException as error:
            self._end_workers(error.sigval)
            raise

    def _end_workers(self, number: signal.Signals) -> None:
        if self._pcontext is None:
            return
        started = time.monotonic()
        try:
            # Torch says int, but only adds the number to a clock.
            self._pcontext.close(number, timeout=self.grace_seconds)  # type: ignore[arg-type]
        except SignalException:
            self._pcontext.close(signal.SIGKILL)
            raise
        if time.monotonic() - started >= self.grace_seconds:
            print(
                f"hub: the processes were still running after launch.grace_seconds={self.grace_seconds:g} and were killed. "
                "If writing a checkpoint takes longer, type more",
                file=sys.stderr,
                flush=True,
            )


def main(run_path: Path) -> int:
    """Start the workers and wait for them. Returns the exit code of the first that failed, or 0."""
    cfg, run = runfile.read(run_path / "run.yaml").launch, Run(run_path)
    for name in ("torch.distributed.elastic", "torch.distributed.elastic.agent.server.api"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ |= warnings_shown()
    spec = _spec(cfg, run_path)
    try:
        for number in STOP_SIGNALS:
            signal.signal(number, _stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        end_with_parent()
        os.environ[STARTED_BY] = str(Process.this())
        result = Agent(spec, cfg.grace_seconds).run()
        spec.rdzv_handler.shutdown()
    except SignalException as error:
        exit_code = 128 + int(error.sigval)
        if cfg.node_rank == 0:  # the workers may not have begun, and the launcher may be gone
            with suppress(HubError, OSError):
                write_interrupted(run, f"stopped by {error.sigval.name}")
        if isinstance(spec.rdzv_handler, Rendezvous) and not spec.rdzv_handler.complete:
            message = f"stopped by {error.sigval.name} while waiting for {spec.rdzv_handler.waits_for}"
            run.write_failure(
                Failure(
                    rank=cfg.node_rank, message=message, exit_code=exit_code, time=time.time(), signal_number=int(error.sigval)
                )
            )
        return exit_code
    except HubError as error:
        run.write_failure(Failure(rank=cfg.node_rank, message=str(error), exit_code=error.exit_code, time=time.time()))
        return error.exit_code
    if not result.is_failed():
        return 0
    exit_code = min(result.failures.values(), key=lambda failure: failure.timestamp).exitcode
    return int(exit_code if exit_code > 0 else 128 - exit_code)


def _spec(cfg: LaunchConfig, run_path: Path) -> WorkerSpec:
    if cfg.rdzv_endpoint is None:
        meeting = RendezvousParameters(
            backend="c10d", endpoint="localhost:0", run_id=uuid.uuid4().hex, min_nodes=1, max_nodes=1, local_addr=None
        )
        handler = get_rendezvous_handler(meeting)
    else:
        # With c10d the first machine to connect would get rank 0, but the run folder is on machine 0.
        handler = Rendezvous(cfg)
    return WorkerSpec(
        role=DEFAULT_ROLE,
        local_world_size=int(cfg.nproc_per_node),
        rdzv_handler=handler,
        entrypoint=sys.executable,
        args=("-m", "hub.launch.worker", str(run_path)),
        max_restarts=0,
        monitor_interval=0.2,
    )


def _stop(number: int, frame: FrameType | None) -> None:
    """Handle signals until the agent has installed its own handlers."""
    raise SignalException(f"stopped by signal {number}", signal.Signals(number))


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a thread may still wait in torch, and must not be torn down there
