"""Several worker processes on this machine, by torch's elastic agent: `python -m hub.train.parallel.elastic RUN_FOLDER`.

The agent is what torchrun uses: it sets RANK, WORLD_SIZE and the rendezvous, and ends all workers when one of them
dies.
"""

import logging
import signal
import sys
import uuid
from pathlib import Path
from types import FrameType

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from hub import runfile
from hub.signals import STOP_SIGNALS, end_with_parent

MEETING_SECONDS = 900
"""How long a machine waits for the others."""


def main(run_path: Path) -> int:
    """Start the workers and wait for them. Returns the exit code of the first that failed, or 0."""
    cfg = runfile.read(run_path / "run.yaml").launch
    for name in ("torch.distributed.elastic", "torch.distributed.elastic.agent.server.api"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    one_machine = cfg.nnodes == 1 and cfg.rdzv_endpoint is None
    config = LaunchConfig(
        min_nodes=cfg.nnodes,
        max_nodes=cfg.nnodes,
        nproc_per_node=int(cfg.nproc_per_node),
        run_id=uuid.uuid4().hex if one_machine else f"hub-{cfg.rdzv_endpoint}",
        # With c10d the machine that comes first would get rank 0; the run folder is on machine 0.
        rdzv_backend="c10d" if one_machine else "static",
        rdzv_endpoint="localhost:0" if one_machine else str(cfg.rdzv_endpoint),
        rdzv_configs={} if one_machine else {"rank": cfg.node_rank, "timeout": MEETING_SECONDS},
        max_restarts=0,
        monitor_interval=0.2,
    )
    try:
        for number in STOP_SIGNALS:
            signal.signal(number, _stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        end_with_parent()
        elastic_launch(config, sys.executable)("-m", "hub.worker", str(run_path))
        return 0
    except ChildFailedError as error:
        exit_code = error.get_first_failure()[1].exitcode
        return int(exit_code if exit_code > 0 else 128 - exit_code)
    except SignalException as error:
        return 128 + int(error.sigval)


def _stop(number: int, frame: FrameType | None) -> None:
    """Until the agent has handlers of its own."""
    raise SignalException(f"stopped by signal {number}", signal.Signals(number))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
