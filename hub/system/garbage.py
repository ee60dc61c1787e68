"""Python's garbage collector, in work that makes many objects and ends soon, and beside a GPU that must not wait for it."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

SELDOM = (200_000, 50, 50)
"""Thresholds of its three generations (`gc.set_threshold`). Python's own are 700, 10 and 10."""


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Let the collector run seldom in this context: importing and tracing a model take a fifth less time."""
    before = gc.get_threshold()
    gc.set_threshold(*SELDOM)
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextmanager
def frozen(own_process: bool) -> Iterator[None]:
    """Freeze the objects made so far, which live to the end of this context: the collector does not visit them.

    Args:
        own_process: whether the process is the run's own. If not, the program around the run may have frozen its objects
            already, and the end of this context would unfreeze them. Then nothing is frozen here: few objects are new.
    """
    gc.collect()
    if not own_process and gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
