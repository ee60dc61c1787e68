"""Several worker processes on this machine, by torch's elastic agent: `python -m hub.launch.elastic RUN_FOLDER`.

The agent is what torchrun uses: it sets RANK, WORLD_SIZE and the rendezvous, and ends all workers when one of them
dies.
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
"""How long a machine waits for the others."""


class Agent(LocalElasticAgent):  # type: ignore[misc]  # torch gives it no types
    """Torch's agent, but after a signal the workers have the time that was asked for. Torch gives them 30 s, which can be
    changed from version 2.12 on only; a worker that fails still leaves the others these.
    """

    def __init__(self, spec: WorkerSpec, grace_seconds: float) -> None:
        """Args:
        spec: what to start.
        grace_seconds: time from the first signal until what has not ended is killed. A second signal kills at once.
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
            self._pcontext.close(number, timeout=self.grace_seconds)
        except SignalException:
            self._pcontext.close(signal.SIGKILL)
            raise
        if time.monotonic() - started >= self.grace_seconds:
            print(
                f"hub: the processes had not ended after launch.grace_seconds={self.grace_seconds:g} and were killed. "
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
        # With c10d the machine that comes first would get rank 0; the run folder is on machine 0.
        backend="c10d" if one_machine else "static",
        endpoint="localhost:0" if one_machine else str(cfg.rdzv_endpoint),
        run_id=uuid.uuid4().hex if one_machine else f"hub-{cfg.rdzv_endpoint}",
        min_nodes=cfg.nnodes,
        max_nodes=cfg.nnodes,
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
    """Until the agent has handlers of its own."""
    raise SignalException(f"stopped by signal {number}", signal.Signals(number))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
