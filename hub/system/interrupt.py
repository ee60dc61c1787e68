"""Ctrl-C while the command line imports its modules: one line and exit code 130, as later.

Only the standard library is imported here: this is the first module that the hub imports.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

EXIT_CODE = 128 + signal.SIGINT


def is_command_line() -> bool:
    """Whether this process runs `python -m hub` or the console script `hub`. A program that imports the hub does not."""
    if sys.argv[0] == "-m":  # Python still looks for the module
        before_arguments = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]
        return before_arguments[-1] in ("hub", "-mhub")
    return os.path.basename(sys.argv[0]) in ("hub", "hub.exe")


@contextmanager
def one_line_on_interrupt(applies: bool = True) -> Iterator[None]:
    """A context in which Ctrl-C ends the process with one line, where Python would show a traceback.

    Args:
        applies: if False, nothing is changed. Nor is it in another thread, or where SIGINT is ignored or handled already.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not (applies and is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler):
        yield
        return
    signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def end_interrupted() -> NoReturn:
    """End a command that Ctrl-C has stopped, with its line.

    Not by `sys.exit`: where Ctrl-C came within code that a library runs from a text, as namedtuple does, CPython would end by
    the signal in spite of it (`unhandled_keyboard_interrupt` in pythonrun.c).
    """
    with suppress(OSError, ValueError):  # nobody reads it any more
        sys.stdout.flush()
    print("hub: stopped", file=sys.stderr, flush=True)
    os._exit(EXIT_CODE)


def _end(number: int, frame: FrameType | None) -> None:
    end_interrupted()
