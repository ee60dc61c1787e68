"""What is said must never end what is done: output that can't be written is dropped.

A terminal goes when a connection drops (EIO), a pipe's reader ends (`| head`, EPIPE), a log fills its disk (ENOSPC).
"""

import errno
import io
import os
import select
import sys
from typing import Any, TextIO

SECONDS_FOR_A_READER = 10.0
"""Time that a reader who takes nothing is waited for, where a file does not block."""

PLAIN_TERMINALS = ("dumb", "unknown")
"""Values of TERM for terminals whose cursor can't move, as screen readers use them."""

_said = [0]


class Dropping(io.FileIO):
    """A file for standard output or error that takes whatever is written: what the system refuses is dropped."""

    lost: OSError | None = None
    """Why something was dropped, the first time. A reader that has ended does not count: it wanted no more."""

    def write(self, data: Any, /) -> int:
        """Write as much as the system takes. Returns the number of bytes, after an error as if all had been written."""
        try:
            written = super().write(data)
            if written is None:
                select.select([], [self.fileno()], [], SECONDS_FOR_A_READER)
                written = super().write(data)
        except OSError as error:
            if error.errno != errno.EPIPE:
                self.lost = self.lost or error
            written = None
        return len(data) if written is None else written


def drop_what_nobody_reads() -> None:
    """Make standard output and error of this process never raise, whoever prints: the hub, a library, Python at its end.

    A standard stream that was closed before the start is opened on nothing: the next file that is opened would get its number,
    and what a library prints.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream: Any = getattr(sys, name)
        if stream is not None and stream is not getattr(sys, f"__{name}__"):
            continue  # a program has put its own there
        dropping = io.TextIOWrapper(
            io.BufferedWriter(Dropping(number, "wb", closefd=False)),
            encoding=getattr(stream, "encoding", "utf-8"),
            errors="backslashreplace",
            line_buffering=getattr(stream, "line_buffering", True),
            write_through=getattr(stream, "write_through", False),
        )
        setattr(sys, name, dropping)
        setattr(sys, f"__{name}__", dropping)


def lost_output() -> OSError | None:
    """Why something of standard output was dropped, since `drop_what_nobody_reads`. None: nothing was."""
    raw = getattr(getattr(sys.__stdout__, "buffer", None), "raw", None)
    return raw.lost if isinstance(raw, Dropping) else None


def say(text: str, stream: TextIO | None = None, end: str = "\n") -> None:
    """Print a text at once. If it can't be printed it is dropped.

    Args:
        text: what to print.
        stream: where to. None: standard output as it is now.
        end: what follows.
    """
    _said[0] += 1
    try:
        print(text, file=stream if stream is not None else sys.stdout, end=end, flush=True)
    except (OSError, ValueError):  # ValueError: the stream is closed
        return


def lines_said() -> int:
    """How often `say` was called in this process."""
    return _said[0]


def say_error(text: str) -> None:
    """Print a text on standard error, as `say` does."""
    say(text, sys.stderr)


def moving_terminal() -> TextIO | None:
    """The terminal that shows standard output and error, if its cursor can move. None: a pipe, a file, or TERM=dumb."""
    try:
        is_terminal = all(stream is not None and stream.isatty() for stream in (sys.stdout, sys.stderr))
    except ValueError:  # one is closed
        return None
    return sys.stderr if is_terminal and os.environ.get("TERM") not in PLAIN_TERMINALS else None
