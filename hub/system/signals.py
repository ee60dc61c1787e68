"""How a process is stopped: by SIGINT and SIGTERM, and by the death of its parent."""

import gc
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from hub.errors import Interrupted
from hub.system.processes import Process

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE_SECONDS = 2.0
"""Before training, time from a signal until a process ends whose main thread can't handle it, as it waits in C++."""
STARTED_BY = "HUB_STARTED_BY"
"""Environment variable with the hub's process that started this one, as a `Process` is written."""


class StopRequest:
    """Turns the first signal into a request, which the training loop handles after the step. A second one ends the process.

    Before the loop, while loading or tokenizing, the first signal raises `Interrupted` at once. After the loop a signal is only
    recorded, so that the trained model is saved.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self.time = math.inf
        """When the signal came, as `time.time()`."""
        self._ends_process = True
        """Whether a second signal ends the process."""
        self.in_loop = False
        """Whether training has begun. From then on a signal is only recorded."""
        self.last_words: Callable[[int], None] = lambda number: None
        """Called with the signal's number before a signal ends the process at once, in whatever thread. May raise."""

    def install(self) -> "StopRequest":
        """Handle signals from now on, including one that came since the process was started: see `signals_blocked`."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._receive)
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reader,), name="stop-request", daemon=True).start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        return self

    def _watch(self, reader: int) -> None:
        """End the process if a signal before training is not handled: a rank may wait for one that has ended already."""
        while received := os.read(reader, 1):
            if received[0] not in STOP_SIGNALS or self.in_loop:
                continue
            time.sleep(PATIENCE_SECONDS)
            if self.signal_number is None and not self.in_loop:
                self._end(received[0])

    def _end(self, number: int) -> NoReturn:
        with suppress(Exception):
            self.last_words(number)
        os._exit(128 + number)

    @contextmanager
    def handled_here(self) -> Iterator[None]:
        """Handle signals within this context, for a run in the user's own process: a second one raises, and ends the run alone.

        Outside the main thread Python handles no signals, and nothing is changed.
        """
        self.signal_number, self.time = None, math.inf
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._ends_process = False
        before = {number: signal.signal(number, self._receive) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            self._ends_process = True
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is not None:
            if self._ends_process:
                self._end(number)
            raise Interrupted(f"stopped by a second signal ({signal.Signals(number).name})", number)
        self.signal_number, self.time = number, time.time()
        if not self.in_loop:
            raise Interrupted(f"stopped by {signal.Signals(number).name} before training began", number)


stop_request = StopRequest()
"""The request to stop this process: installed by the worker, handled by the training loop."""


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Block SIGINT and SIGTERM within this context.

    In a child process that is started within it they stay blocked until the child installs its `stop_request`. So none is
    lost while it imports.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def terminated_like_interrupted() -> Iterator[list[int]]:
    """SIGTERM raises KeyboardInterrupt within this context, as Ctrl-C does, so that what is half-done is removed.

    Outside the main thread Python handles no signals, and nothing is changed.

    Yields:
        The number of the signal, when it has come.
    """
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = signal.signal(signal.SIGTERM, receive)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)


def end_with_parent(poll_seconds: float = 1.0) -> None:
    """Send this process SIGTERM when its parent is gone. So a killed launcher leaves no workers behind.

    A parent that was killed before this call, while this process imported, is known by `STARTED_BY`.
    """
    parent, starter = os.getppid(), os.environ.get(STARTED_BY)

    def is_alone() -> bool:
        return os.getppid() != parent or (starter is not None and not Process.parse(starter).is_alive)

    def watch() -> None:
        while not is_alone():
            time.sleep(poll_seconds)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def end_process(exit_code: int) -> NoReturn:
    """End this process. In a group of processes nothing is torn down.

    gloo's destructor waits for a thread that waits for the GIL, which the destructor's caller holds: a worker that ended in
    the ordinary way could hang forever. All files are written by now.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    if exit_code == 128 + signal.SIGINT:  # a second Ctrl-C would show a traceback of what ends
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(exit_code))
    gc.freeze()  # else Python goes through all that torch and transformers have made before it ends: over a second
    sys.exit(exit_code)
