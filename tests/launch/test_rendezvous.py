"""Machines that wait for each other: they meet, say whom they wait for, and can be stopped."""

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hub.config.schema import LaunchConfig, RunConfig
from hub.errors import LaunchError
from hub.launch.machine import machine_problems
from hub.launch.rendezvous import Rendezvous, interruptible


@pytest.fixture
def endpoint() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def machine(endpoint: str, rank: int, nnodes: int = 3, seconds: float = 30) -> Rendezvous:
    return Rendezvous(LaunchConfig(nnodes=nnodes, node_rank=rank, rdzv_endpoint=endpoint, rdzv_timeout_seconds=seconds))


def test_machines_that_fit_together_meet_and_others_are_refused_with_what_differs(endpoint):
    with ThreadPoolExecutor(4) as threads:
        machines = [machine(endpoint, rank) for rank in (2, 0)]
        meet = [threads.submit(one.next_rendezvous) for one in machines]
        while any(one.missing != [1] for one in machines):
            time.sleep(0.05)
        assert machines[0].waits_for == f"1 of 3 machines at {endpoint} (launch.node_rank=1)"
        with pytest.raises(LaunchError, match=r"launch\.nnodes=2 here, but 3 on another machine\. Type the same"):
            machine(endpoint, 1, nnodes=2).next_rendezvous()
        machines.append(machine(endpoint, 1))
        infos = [one.result() for one in [*meet, threads.submit(machines[2].next_rendezvous)]]
        infos[0].store.set("word", "seen by all")
        assert {info.store.get("word") for info in infos} == {b"seen by all"}
        assert [(info.rank, info.world_size) for info in infos] == [(2, 3), (0, 3), (1, 3)]
        with pytest.raises(LaunchError, match=r"a run of other machines is in progress there\. Type .* another port"):
            machine(endpoint, 1).next_rendezvous()


def test_two_machines_of_one_rank_are_refused_and_none_waits_for_longer_than_it_was_told_to(endpoint):
    machines = [machine(endpoint, rank, seconds=1.5) for rank in (0, 1, 1)]
    with ThreadPoolExecutor(3) as threads:
        ends = [threads.submit(interruptible, one.next_rendezvous, one.watch) for one in machines]
        said = sorted(str(one.exception(timeout=60)) for one in ends)
    assert said[0].startswith(f"1 of 3 machines at {endpoint} (launch.node_rank=2) did not come within launch.rdzv_timeout_sec")
    assert said[1] == said[0]
    assert said[2].startswith(f"launch.rdzv_endpoint={endpoint}: launch.node_rank=1 is that of another machine too. Type")


@pytest.mark.slow
@pytest.mark.usefixtures("warm_python_here")
def test_machines_that_wait_say_for_whom_and_end_at_once_when_stopped(tmp_path, endpoint):
    (tmp_path / "tmp").mkdir()

    def start(rank: int) -> subprocess.Popen[str]:
        options = [f"launch.rdzv_endpoint={endpoint}", "launch.nnodes=3", f"launch.node_rank={rank}", "run_name=it"]
        return subprocess.Popen(
            [sys.executable, "-m", "hub", "algo=lora_sft", "model=tiny", "data=tiny", *options], cwd=tmp_path,
            env=os.environ | {"TMPDIR": str(tmp_path / "tmp")}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def waits(process: subprocess.Popen[str], number: int, ranks: str) -> None:
        """Read lines up to the one that says it: a machine that is busy for long is taken for gone, and seen again."""
        for line in process.stderr:
            assert line.startswith("hub: waiting for ")
            if line.startswith(f"hub: waiting for {number} of 3 machines at {endpoint} (launch.node_rank={ranks}), for up to "):
                return
        raise AssertionError(f"{number} of 3 machines were never said to be missing")

    def stop(process: subprocess.Popen[str], number: int, line: str) -> None:
        process.send_signal(number)
        *before, last = process.communicate(timeout=30)[1].splitlines()
        assert last == line
        assert all(one.startswith("hub: waiting for ") for one in before)
        assert process.returncode == 128 + number

    host = start(0)
    waits(host, 2, "1, 2")
    other = start(1)
    waits(host, 1, "2")
    waits(other, 1, "2")
    stopped = f"hub: stopped by {{}} while waiting for {{}} of 3 machines at {endpoint} (launch.node_rank={{}})"
    stop(other, signal.SIGINT, stopped.format("SIGINT", 1, "2"))
    waits(host, 2, "1, 2")
    stop(host, signal.SIGTERM, stopped.format("SIGTERM", 2, "1, 2"))
    assert not list((tmp_path / "runs").iterdir()), "the same command can be typed again"
    launch = LaunchConfig(nnodes=3, rdzv_endpoint=endpoint, nproc_per_node=1)
    assert not list(machine_problems(RunConfig(launch=launch))), "nor do connections that have just ended hold the port"
    assert not list((tmp_path / "tmp").glob("hub-machine-*"))
    assert not [pid for pid in os.listdir("/proc") if pid.isdigit() and str(tmp_path) in command_of(pid)]


def command_of(pid: str) -> str:
    try:
        return Path("/proc", pid, "cmdline").read_text()
    except OSError:
        return ""
