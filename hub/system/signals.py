"""How a process of the hub is asked to stop: SIGINT and SIGTERM, and the death of the process that started it."""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from hub.errors import Interrupted

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Turns the first signal into a request that the training loop meets at the end of its step; a second one ends all.

    Before the loop (loading, tokenising) the first signal raises `Interrupted` where the program is. Behind it a signal changes
    nothing: what is trained is worth the time to save it.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self.time = math.inf
        """When it came, as `time.time()` has it."""
        self.in_loop = False
        """Training has begun: from then on a signal is only noted, to the end of the run."""

    def install(self) -> "StopRequest":
        """Receive signals from now on, one that came since the process was started included: see `held_back`."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._receive)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        return self

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is not None:
            os._exit(128 + number)
        self.signal_number, self.time = number, time.time()
        if not self.in_loop:
            raise Interrupted(f"stopped by {signal.Signals(number).name} before training began", number)


stop_request = StopRequest()
"""This process's request to stop: installed by the worker, met by the training loop."""


@contextmanager
def held_back() -> Iterator[None]:
    """Signals that ask to stop wait until the end of this block.

    In a process that is started in it they wait until that installs its `stop_request`, so that none is lost while it
    imports.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent(poll_seconds: float = 1.0) -> None:
    """Send this process SIGTERM when its parent is gone, so that a killed launcher leaves no workers behind."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(poll_seconds)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def end_process(exit_code: int) -> NoReturn:
    """End this process. In a group of processes without tearing anything down.

    gloo's destructor waits for a thread that waits for Python's lock, which the destructor's caller holds: a worker
    that ended in the ordinary way could hang for ever. What has to be on disk is there by now.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    sys.exit(exit_code)
