"""Python's garbage collector, in work that makes many objects and ends soon, and beside a GPU that must not wait for it."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def not_collected() -> Iterator[None]:
    """Within it the collector rests: importing torch and transformers, and tracing a model, take a fifth less time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


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
