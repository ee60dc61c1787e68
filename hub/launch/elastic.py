"""Several worker processes on this machine, by torch's elastic agent: `python -m hub.launch.elastic RUN_FOLDER`.

torchrun uses the same agent: it sets RANK, WORLD_SIZE and the rendezvous, and ends all workers if one of them dies.
"""

import logging
import os
import signal
import sys
import time
import uuid
from pathlib import Path
from types import FrameType

from torch.distributed.elastic.agent.server.api import DEFAULT_ROLE, RunResult, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from hub.compose import runfile
from hub.config.schema import LaunchConfig
from hub.plugins.registry import warnings_shown
from hub.system.signals import STOP_SIGNALS, end_with_parent

MEETING_SECONDS = 900
"""Time that a machine waits for the others at the rendezvous."""


class Agent(LocalElasticAgent):  # type: ignore[misc]  # torch gives it no types
    """Torch's agent, with a configurable grace period after a signal.

    Torch waits 30 s, and has an option for it from version 2.12 on only. If a worker fails, the others still get 30 s.
    """

    def __init__(self, spec: WorkerSpec, grace_seconds: float) -> None:
        """Args:
        spec: the processes to start.
        grace_seconds: time from the first signal until processes are killed. A second signal kills them at once.
        """
        super().__init__(spec, DefaultLogsSpecs())
        self.grace_seconds = grace_seconds

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
    cfg = runfile.read(run_path / "run.yaml").launch
    for name in ("torch.distributed.elastic", "torch.distributed.elastic.agent.server.api"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ |= warnings_shown()
    try:
        for number in STOP_SIGNALS:
            signal.signal(number, _stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        end_with_parent()
        spec = _spec(cfg, run_path)
        result = Agent(spec, cfg.grace_seconds).run()
        spec.rdzv_handler.shutdown()
    except SignalException as error:
        return 128 + int(error.sigval)
    if not result.is_failed():
        return 0
    exit_code = min(result.failures.values(), key=lambda failure: failure.timestamp).exitcode
    return int(exit_code if exit_code > 0 else 128 - exit_code)


def _spec(cfg: LaunchConfig, run_path: Path) -> WorkerSpec:
    one_machine = cfg.nnodes == 1 and cfg.rdzv_endpoint is None
    host, _, port = ("" if one_machine else str(cfg.rdzv_endpoint)).rpartition(":")
    meeting = RendezvousParameters(
        # With c10d the first machine to connect would get rank 0, but the run folder is on machine 0.
        backend="c10d" if one_machine else "static",
        endpoint="localhost:0" if one_machine else str(cfg.rdzv_endpoint),
        run_id=uuid.uuid4().hex if one_machine else f"hub-{cfg.rdzv_endpoint}",
        min_nodes=cfg.nnodes,
        max_nodes=cfg.nnodes,
        local_addr=None,
        timeout=MEETING_SECONDS,
        **({} if one_machine else {"rank": cfg.node_rank}),
    )
    return WorkerSpec(
        role=DEFAULT_ROLE,
        local_world_size=int(cfg.nproc_per_node),
        rdzv_handler=get_rendezvous_handler(meeting),
        entrypoint=sys.executable,
        args=("-m", "hub.launch.worker", str(run_path)),
        max_restarts=0,
        monitor_interval=0.2,
        master_addr=host or None,
        master_port=int(port) if port else None,
    )


def _stop(number: int, frame: FrameType | None) -> None:
    """Handle signals until the agent has installed its own handlers."""
    raise SignalException(f"stopped by signal {number}", signal.Signals(number))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
