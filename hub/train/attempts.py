"""Passes that may run out of memory before training: tried, and tried again in a smaller way, on all ranks alike."""

from collections.abc import Callable
from typing import TypeVar

import torch

from hub.errors import ModelError
from hub.models.structure import waits_for_others
from hub.parallel.group import max_over_ranks
from hub.system.answers import doubt
from hub.system.memory import Shortage, free_unused, is_out_of_memory, shortage_of

T = TypeVar("T")


def tried(attempt: Callable[[], T]) -> tuple[T | None, Shortage | None]:
    """Run something that may run out of memory. When it has, all that it had made is free again.

    Args:
        attempt: repeatable, without communication.

    Returns:
        Its result; or None, and what was missing.
    """
    try:
        return attempt(), None
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        shortage = shortage_of(error)
    # The exception references the tensors of the failed pass. Here it is gone.
    free_unused()
    return None, shortage


def on_all_ranks(attempt: Callable[[], T]) -> tuple[T | None, Shortage | None]:
    """As `tried`, with the same outcome on all ranks: if it fails on one, it has failed on all. All ranks must call it."""
    result, shortage = tried(attempt)
    if not max_over_ranks(float(shortage is not None)):
        return result, None
    return None, shortage or Shortage()


def twice(model: torch.nn.Module, attempt: Callable[[], T]) -> T:
    """Run a short pass, and once more after all memory that can be freed has been freed. Without communication.

    Args:
        model: that the pass runs.
        attempt: repeatable.

    Raises:
        OutOfMemoryError: it runs out both times, or the ranks wait for each other within the pass.
    """
    if waits_for_others(model):
        return attempt()
    result, shortage = tried(attempt)
    if shortage is None:
        return result  # type: ignore[return-value]  # it is there
    doubt()
    return attempt()


def too_little(what: str, shortage: Shortage | None, instead: str) -> ModelError:
    """The error of a run that memory is too small for.

    Args:
        what: needs it, and how it was eased.
        shortage: what was missing. None: nothing is known.
        instead: what to type.
    """
    return ModelError(f"out of memory: {what} ({shortage or Shortage()}). {instead}")
