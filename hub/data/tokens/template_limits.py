"""Bounds on the time and memory of a chat template, which is a program from the model's folder.

The sandbox keeps it from everything else.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import FrameType

from hub.config.bounds import bounds
from hub.errors import DataError

JINJA = (3, 1, 6)
"""The first release without a known sandbox escape (CVE-2025-27516)."""

RAISED = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""Errors of a failing template besides Jinja's own."""


class TemplateLimitError(DataError):
    """A template took too much time or memory."""


class _TooLongError(Exception):
    """Raised by the alarm inside the template."""


@contextmanager
def limits(where: str) -> Iterator[None]:
    """Bound the time and memory of a template, in the main thread of a process. Elsewhere there is no alarm to end it.

    Args:
        where: the conversation, its file, or the file of the template, for messages.

    Raises:
        TemplateLimitError: the template took too much time or memory.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        with _alarm(), _memory_bound():
            yield
    except _TooLongError:
        raise TemplateLimitError(
            f"{where}: the chat template did not end within {bounds().template_seconds:g} s. Type data.template=FILE.jinja, "
            "or a larger launch.template_seconds"
        ) from None
    except MemoryError:
        raise TemplateLimitError(
            f"{where}: the chat template takes more than {bounds().template_memory_gb:g} GiB of memory. Type "
            "data.template=FILE.jinja, or a larger launch.template_memory_gb"
        ) from None


@contextmanager
def _alarm() -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise _TooLongError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, bounds().template_seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _memory_bound() -> Iterator[None]:
    import resource

    try:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:  # no Linux
        yield
        return
    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    bound = used + int(bounds().template_memory_gb * 2**30)
    if any(limit != resource.RLIM_INFINITY and limit < bound for limit in (before, hard)):
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (bound, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))


def check_sandbox() -> None:
    """Refuse a Jinja whose sandbox has known escapes.

    Raises:
        DataError: the installed release is too old.
    """
    installed = version("jinja2")
    if tuple(int(part) for part in installed.split(".")[:3] if part.isdigit()) < JINJA:
        raise DataError(
            f"the sandbox of jinja2 {installed}, in which chat templates run, is not safe. Type pip install --upgrade jinja2"
        )
