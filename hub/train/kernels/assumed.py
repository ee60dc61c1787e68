"""What a pass over tensors without data takes for the device: a plan runs a model's passes as a GPU would."""

from collections.abc import Iterator
from contextlib import contextmanager

_assumed = False


@contextmanager
def as_on_gpu() -> Iterator[None]:
    """Within it kernels behave as on a GPU wherever their tensors are. For tensors without data only."""
    global _assumed
    before, _assumed = _assumed, True
    try:
        yield
    finally:
        _assumed = before


def is_assumed() -> bool:
    """Whether kernels run over tensors without data, as on a GPU."""
    return _assumed
