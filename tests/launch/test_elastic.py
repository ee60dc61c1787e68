"""How long worker processes may take to end after a signal. The processes are real, of a backend that ignores signals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DEAF = """
import signal, time
from hub import Backend, hookimpl

@hookimpl
def hub_backends():
    return [Backend(name="deaf", algorithm="lora_sft", build="deaf:train")]

def train(setup):
    run = setup.run
    # As a process that hangs in a call to a GPU: no handler is run.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
    (run.path / ("main" if run.is_main else "other")).touch()
    time.sleep(100)
"""

pytestmark = pytest.mark.usefixtures("warm_python")


@pytest.fixture
def deaf(tmp_path):
    """Starts two processes that hang, and gives what started them and their run folder."""
    (tmp_path / "deaf.py").write_text(DEAF)
    info = tmp_path / "deaf-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: deaf\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[hub]\ndeaf = deaf\n")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))

    def start(grace_seconds: float) -> tuple[subprocess.Popen[str], Path]:
        process = subprocess.Popen(
            [sys.executable, "-m", "hub", "algo=lora_sft", "model=tiny", "data=tiny", "algo.backend=deaf", "run_name=it",
             "launch.nproc_per_node=2", f"launch.grace_seconds={grace_seconds}"],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        folder = tmp_path / "runs" / "it"
        end = time.monotonic() + 60
        while not ((folder / "main").exists() and (folder / "other").exists()):
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.05)
        return process, folder

    return start


@pytest.mark.slow
def test_what_has_not_ended_when_its_time_is_over_is_killed_and_that_is_said(deaf):
    process, folder = deaf(grace_seconds=1.5)
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert time.monotonic() - begun > 1.5
    assert process.returncode == 128 + signal.SIGTERM
    assert "hub: the processes were still running after launch.grace_seconds=1.5 and were killed" in err
    assert json.loads((folder / "result.json").read_text())["status"] == "interrupted"


@pytest.mark.slow
def test_a_second_signal_ends_at_once(deaf):
    process, folder = deaf(grace_seconds=300)
    process.send_signal(signal.SIGINT)
    time.sleep(1.5)  # sooner it would be an echo
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 128 + signal.SIGINT
    assert json.loads((folder / "result.json").read_text())["status"] == "interrupted"
