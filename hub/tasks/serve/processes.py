"""The processes of an engine: how they end, with the command that started them or after it was killed."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil

GRACE_SECONDS = 10
"""Time that an engine has to end after a signal. vLLM's processes end one after the other."""

_GUARD = f"""
read -r _
kill -s TERM -- "-$1"
n=0
while [ $n -lt {GRACE_SECONDS} ] && kill -s 0 -- "-$1"; do sleep 1; n=$((n + 1)); done
kill -s KILL -- "-$1"
rm -rf -- "$2"
"""


def guard(group: int, folder: Path) -> "subprocess.Popen[bytes]":
    """Start a process that ends a group of processes, and removes a folder, when this process is killed.

    It reads from a pipe, which ends with this process. A signal to the engine alone is not enough: while vLLM's first process
    waits for the others it handles none.

    Args:
        group: the engine's.
        folder: what the engine serves.

    Returns:
        The guard. Kill it when the engine has ended.
    """
    return subprocess.Popen(
        ["sh", "-c", _GUARD, "hub-serve-guard", str(group), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def end(child: "subprocess.Popen[bytes]", received: list[int]) -> None:
    """Hand the signal on, and wait for all processes of the engine. Kill those that do not end, or all at a second signal.

    Args:
        child: the engine, which leads a group of processes.
        received: the signals up to now. It grows.
    """
    if child.poll() is None:
        child.send_signal(received[0] if received else signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    while (child.poll() is None or _lives(child.pid)) and time.monotonic() < deadline and len(received) < 2:
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _lives(group: int) -> bool:
    """Whether a process of a group runs. One that has ended, and that no parent has asked for yet, does not."""
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                return True
    return False
