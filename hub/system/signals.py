"""What signals ask of a process: to stop, to save, to end at once. And how it learns of the death of its parent.

A scheduler sends a signal to all processes of a run at once, and each of them passes it on, so that one request arrives several
times. Only the process that the user has started tells a second request from an echo; it asks the others by `END_NOW`.
"""

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
"""They end the run after its step, with a checkpoint."""
SAVE_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)
"""They ask for a checkpoint, as schedulers send one ahead of a time limit. The run goes on."""
END_NOW = signal.SIGQUIT
"""Ends a worker at once. The launcher sends it after a second request to stop."""
HANDLED = (*STOP_SIGNALS, *SAVE_SIGNALS, END_NOW, signal.SIGHUP)
"""All signals that processes of a run handle. SIGHUP, of a terminal that is gone, ends nothing."""
ECHO_SECONDS = 1.0
"""Time within which a repeated signal is the same request."""
PATIENCE_SECONDS = 2.0
"""Before training, time from a signal until a process ends whose main thread can't handle it, as it waits in C++."""
ORPHAN_SECONDS = 600.0
"""Time that a process whose parent is gone has to end by itself."""
STARTED_BY = "HUB_STARTED_BY"
"""Environment variable with the hub's process that started this one, as a `Process` is written."""


class StopRequest:
    """Turns a signal into a request, which the training loop handles after the step.

    Before the loop, while loading or tokenizing, the first signal to stop raises `Interrupted` at once. After the loop a signal
    is only recorded, so that the trained model is saved.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        """The signal that asks to stop."""
        self.time = math.inf
        """When it came, as `time.time()`."""
        self.save_number: int | None = None
        """The signal that asks for a checkpoint. Whoever writes that sets it to None."""
        self._is_worker = True
        """Whether a second request to stop is left to the process that started this one."""
        self.in_loop = False
        """Whether training has begun. From then on a signal is only recorded."""
        self.acknowledge: Callable[[], None] = lambda: None
        """Called in a worker's own thread when the first signal to stop comes during training: the step may take minutes."""
        self.last_words: Callable[[int], None] = lambda number: None
        """Called with the signal's number before a signal ends the process at once, in whatever thread. May raise."""

    def install(self) -> "StopRequest":
        """Handle signals from now on, including one that came since the process was started: see `signals_blocked`."""
        for number in HANDLED:
            signal.signal(number, self._receive)
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reader,), name="stop-request", daemon=True).start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        return self

    def _watch(self, reader: int) -> None:
        """End the process where its main thread can't handle a signal: a rank may wait for one that has ended already."""
        is_said = False
        while received := os.read(reader, 1):
            number = received[0]
            if number == END_NOW:
                self._end(self.signal_number or number)
            if number not in STOP_SIGNALS:
                continue
            if self.in_loop:
                if not is_said:
                    with suppress(Exception):
                        self.acknowledge()
                is_said = True
                continue
            time.sleep(PATIENCE_SECONDS)
            if self.signal_number is None and not self.in_loop:
                self._end(number)

    def _end(self, number: int) -> NoReturn:
        with suppress(Exception):
            self.last_words(number)
        os._exit(128 + number)

    @contextmanager
    def handled_here(self) -> Iterator[None]:
        """Handle signals within this context, for a run in the user's own process: a second one raises, and ends the run alone.

        Outside the main thread Python handles no signals, and nothing is changed.
        """
        self.signal_number, self.time, self.save_number = None, math.inf, None
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._is_worker = False
        handled = [number for number in HANDLED if number != END_NOW]
        before = {number: signal.signal(number, self._receive) for number in handled}
        try:
            yield
        finally:
            self._is_worker = True
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number in SAVE_SIGNALS:
            self.save_number = number
        if number not in STOP_SIGNALS:
            return
        if self.signal_number is not None:
            if self._is_worker or time.time() - self.time < ECHO_SECONDS:
                return
            raise Interrupted(f"stopped by a second signal ({signal.Signals(number).name})", number)
        self.signal_number, self.time = number, time.time()
        if not self.in_loop:
            raise Interrupted.before_training(number)


stop_request = StopRequest()
"""The request to stop this process: installed by the worker, handled by the training loop."""


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Block the signals that processes of a run handle, within this context.

    In a child process that is started within it they stay blocked until the child installs its `stop_request`. So none is
    lost while it imports.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
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


def end_with_parent(poll_seconds: float = 1.0, at_once: bool = False) -> None:
    """Send this process SIGTERM when its parent is gone. So a killed launcher leaves no workers behind.

    A parent that was killed before this call, while this process imported, is known by `STARTED_BY`.

    Args:
        poll_seconds: how often the parent is looked for.
        at_once: whether to end the process in place of the signal: it has nothing to save.
    """
    parent, starter = os.getppid(), os.environ.get(STARTED_BY)

    def is_alone() -> bool:
        return os.getppid() != parent or (starter is not None and not Process.parse(starter).is_alive)

    def watch() -> None:
        while not is_alone():
            time.sleep(poll_seconds)
        if not at_once:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(ORPHAN_SECONDS)
        os._exit(128 + signal.SIGTERM)  # it hangs, and nobody is left to kill it

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def end_process(exit_code: int) -> NoReturn:
    """End this process. In a group of processes nothing is torn down.

    gloo's destructor waits for a thread that waits for the GIL, which the destructor's caller holds: a worker that ended in
    the ordinary way could hang forever. All files are written by now.
    """
    if exit_code == 0 and threading.current_thread() is threading.main_thread():
        for number in HANDLED:  # what they would stop is done
            signal.signal(number, signal.SIG_IGN)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    if exit_code == 128 + signal.SIGINT:  # a second Ctrl-C would show a traceback of what ends
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(exit_code))
    gc.freeze()  # else Python goes through all that torch and transformers have made before it ends: over a second
    sys.exit(exit_code)
