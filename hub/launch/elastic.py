"""Several worker processes on this machine, by torch's elastic agent: `python -m hub.launch.elastic RUN_FOLDER`.

torchrun uses the same agent: it sets RANK, WORLD_SIZE and the rendezvous, and ends all workers if one of them dies.
"""

import logging
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Mapping
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
from hub.errors import LOST_CONNECTION, HubError
from hub.launch.ending import write_interrupted
from hub.launch.rendezvous import Rendezvous, interruptible
from hub.plugins.registry import warnings_shown
from hub.run import Failure, Run
from hub.system.processes import Process
from hub.system.saying import drop_what_nobody_reads, say_error
from hub.system.signals import END_NOW, HANDLED, SAVE_SIGNALS, STARTED_BY, STOP_SIGNALS, end_with_parent, signals_blocked


class Agent(LocalElasticAgent):  # type: ignore[misc]  # torch gives it no types
    """Torch's agent, with a configurable grace period after a signal, and signals while it waits for other machines.

    Torch waits 30 s after a signal, and has an option for it from version 2.12 on only. If a worker fails, the others still get
    30 s.
    """

    def __init__(self, spec: WorkerSpec, grace_seconds: float, requests: "Requests") -> None:
        """Args:
        spec: the processes to start.
        grace_seconds: time from the first signal until processes are killed. `END_NOW` kills them at once.
        requests: the signals of this process.
        """
        super().__init__(spec, DefaultLogsSpecs())
        self._requests = requests
        self.grace_seconds = grace_seconds

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        handler = worker_group.spec.rdzv_handler
        watch = handler.watch if isinstance(handler, Rendezvous) else lambda: None
        interruptible(partial(super()._rendezvous, worker_group), watch)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        with signals_blocked():
            workers: dict[int, Any] = super()._start_workers(worker_group)
            self._requests.install()  # torch has installed its own: there a second signal, or an echo, kills the workers
            self._requests.forward = self._forward
        return workers

    def _forward(self, number: int) -> None:
        """Pass a signal on to the workers."""
        for handler in getattr(self._pcontext, "subprocess_handlers", {}).values():
            with suppress(ProcessLookupError):
                handler.proc.send_signal(number)

    @property
    def all_completed(self) -> bool:
        """Whether every worker has ended, and none failed."""
        handlers = getattr(self._pcontext, "subprocess_handlers", {}).values()
        return bool(handlers) and all(handler.proc.poll() == 0 for handler in handlers)

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
            say_error(
                f"hub: the processes were still running after launch.grace_seconds={self.grace_seconds:g} and were killed. "
                "If writing a checkpoint takes longer, type more"
            )


def main(run_path: Path) -> int:
    """Start the workers and wait for them. Returns the exit code of the first that failed, or 0."""
    cfg, run = runfile.read(run_path / "run.yaml").launch, Run(run_path)
    for name in ("torch.distributed.elastic", "torch.distributed.elastic.agent.server.api"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ |= warnings_shown()
    spec, requests, agent = _spec(cfg, run_path), Requests(), None
    drop_what_nobody_reads()
    try:
        requests.install()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        end_with_parent()
        os.environ[STARTED_BY] = str(Process.this())
        agent = Agent(spec, cfg.grace_seconds, requests)
        result = agent.run()
        requests.are_over = True
        spec.rdzv_handler.shutdown()
    except SignalException as error:
        if agent is not None and agent.all_completed:
            return 0
        exit_code = 128 + (requests.stopped_by or int(error.sigval))
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
    with suppress(OSError):
        write_killed(run, {rank: failure.exitcode for rank, failure in result.failures.items()})
    exit_code = min(result.failures.values(), key=lambda failure: failure.timestamp).exitcode
    return int(exit_code if exit_code > 0 else 128 - exit_code)


def write_killed(run: Run, exit_codes: Mapping[int, int]) -> None:
    """Write the failure of each rank that a signal has killed, since it could not.

    It comes before those of ranks that have only lost the connection to it.

    Args:
        run: the run folder.
        exit_codes: of the ranks that failed. Below 0: minus the number of the signal.
    """
    lost = [failure.time for failure in Failure.read_all(run) if failure.message == LOST_CONNECTION]
    when = min(lost, default=time.time()) - 1e-3
    for rank, code in exit_codes.items():
        if code < 0 and -code not in (*STOP_SIGNALS, END_NOW) and not run.failure_file(rank).is_file():
            message = f"rank {rank} was killed by {signal.Signals(-code).name} and left no report (out of CPU memory?)"
            run.write_failure(Failure(rank=rank, message=message, exit_code=1, time=when))


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


class Requests:
    """The signals of the agent. The first one to stop raises torch's exception; others to stop are echoes of it."""

    def __init__(self) -> None:
        self.stopped_by: int | None = None
        """The first signal to stop."""
        self.are_over = False
        """Whether the workers have ended: nothing is left to stop."""
        self.forward: Callable[[int], None] = lambda number: None
        """Passes a signal on to the workers, once there are some."""

    def install(self) -> None:
        """Handle signals from now on."""
        for number in HANDLED:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number in SAVE_SIGNALS:
            self.forward(number)
        elif number != signal.SIGHUP and not self.are_over and (number == END_NOW or self.stopped_by is None):
            self.stopped_by = self.stopped_by or number
            raise SignalException(f"stopped by signal {number}", signal.Signals(number))


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a thread may still wait in torch, and must not be torn down there
