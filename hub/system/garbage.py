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
