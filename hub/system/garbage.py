"""Python's garbage collector, in work that makes many objects and ends soon, and beside a GPU that must not wait for it."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

SELDOM = (200_000, 50, 50)
"""New objects after which it looks, and how many of its looks go deeper. Python's own are 700, 10 and 10."""


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Within it the collector seldom looks: importing torch and transformers, and tracing a model, take a fifth less time."""
    before = gc.get_threshold()
    gc.set_threshold(*SELDOM)
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextmanager
def frozen(own_process: bool) -> Iterator[None]:
    """Objects that were made before it live to its end, so the collector does not look through them within it.

    Args:
        own_process: whether the process is the run's own. A program that trains in its own process may have frozen what it
            imported: the end of this would thaw that, so only what was made since is looked through, which is little.
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
