"""How a process of the hub is asked to stop: SIGINT and SIGTERM, and the death of the process that started it."""

import os
import signal
import threading
import time
from types import FrameType

from hub.errors import Interrupted

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Turns the first signal into a request that the training loop meets at the end of its step; a second one ends at once.

    Outside the loop (loading, tokenising) the first signal raises `Interrupted` where the program is.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self.in_loop = False

    def install(self) -> "StopRequest":
        for number in STOP_SIGNALS:
            signal.signal(number, self._receive)
        return self

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is not None:
            os._exit(128 + number)
        self.signal_number = number
        if not self.in_loop:
            raise Interrupted(f"stopped by {signal.Signals(number).name} before training began", number)


stop_request = StopRequest()
"""This process's request to stop: installed by the worker, met by the training loop."""


def end_with_parent(poll_seconds: float = 1.0) -> None:
    """Send this process SIGTERM when its parent is gone, so that a killed launcher leaves no workers behind."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(poll_seconds)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
