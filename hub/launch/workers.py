"""The processes of a run as one child process: it gets our signals, and its output is shown. Nothing here imports torch."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from hub.system import notebook
from hub.system.saying import say
from hub.system.signals import ECHO_SECONDS, END_NOW, HANDLED, SAVE_SIGNALS


class Forwarding:
    """What this process does with signals while a run is in other processes: it passes them on.

    A first signal to stop is passed on. A second one, which is no echo of the first, ends the workers at once.
    """

    def __init__(self) -> None:
        self.stopped_by: int | None = None
        """The first signal to stop."""
        self.child: subprocess.Popen[str] | None = None
        """What gets the signals. None: they wait for it (`pass_to`)."""
        self._waiting: list[int] = []
        self.log: Callable[[str], None] = lambda line: None
        """Receives a line for the run's log. Called in a signal handler: it must not print."""
        self._time = 0.0

    @contextmanager
    def installed(self) -> Iterator["Forwarding"]:
        """Handle signals within this context. Outside the main thread Python handles none, and nothing is changed."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        numbers = [number for number in HANDLED if number != END_NOW]
        before = {number: signal.signal(number, self._receive) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self.log("SIGHUP: the terminal is gone. The run goes on")
        elif number in SAVE_SIGNALS:
            self._send(number)
        elif self.stopped_by is None:
            self.stopped_by, self._time = number, time.monotonic()
            self._send(number)
        elif time.monotonic() - self._time >= ECHO_SECONDS:
            self._send(END_NOW)

    def pass_to(self, child: "subprocess.Popen[str]") -> None:
        """Pass signals on to a child from now on, and those that came before it was there.

        Blocking them until then is not enough: any other thread of this process gets them.
        """
        self.child = child
        while self._waiting:
            self._send(self._waiting.pop(0))

    def _send(self, number: int) -> None:
        if self.child is None:
            self._waiting.append(number)
        elif self.child.poll() is None:
            self.child.send_signal(number)


class Workers:
    """A child process in a session of its own."""

    def __init__(self, command: list[str], env: dict[str, str], signals: Forwarding) -> None:
        """Start it.

        Args:
            command: what to run.
            env: its environment.
            signals: passes signals on to it.
        """
        # In a notebook, or where a test captures output, writing to the terminal would not be seen.
        relay = sys.stdout is not sys.__stdout__
        self._signals = signals
        self._child: subprocess.Popen[str] = subprocess.Popen(
            command,
            env=env | (notebook.for_worker() if relay else {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if relay else None,
            stderr=subprocess.STDOUT if relay else None,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        signals.pass_to(self._child)

    def wait(self) -> int:
        """Wait for the child to end. Returns its exit code. In a notebook its steps are shown as a table."""
        table = notebook.StepTable()
        try:
            for line in self._child.stdout or ():
                if (step := notebook.step_in(line)) is not None:
                    table.step(step)
                else:
                    say(line, end="")
            table.close()
            return self._child.wait()
        finally:
            if self._child.poll() is None:
                self._child.terminate()
                self._child.wait()
            self._signals.child = None
