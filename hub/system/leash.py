"""Ties a child to its parent: it ends when the parent is gone, even one that was killed and could not end it.

The child's standard input is a pipe that the parent holds and never writes to. The system closes it with the parent. This file
is run as a script too, by any Python: `python leash.py SCRIPT ARGUMENTS` runs another script on such a leash.
"""

import os
import runpy
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def leash() -> Iterator[int]:
    """A context for starting and awaiting a child, with the file descriptor for its `stdin`."""
    of_child, of_parent = os.pipe()
    try:
        yield of_child
    finally:
        os.close(of_child)
        os.close(of_parent)


def end_with_parent() -> None:
    """In the child: end this process when its standard input ends."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    end_with_parent()
    sys.argv = sys.argv[1:]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
