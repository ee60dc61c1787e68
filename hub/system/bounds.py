"""A bound on the memory of this process while it looks at files that may be hostile."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def memory_bound(num_bytes: int) -> Iterator[None]:
    """Let this process take only so much memory beyond what it has. Beyond that, Python raises MemoryError.

    The bound holds for the whole process, so there is none where other threads run, and none outside Linux.

    Args:
        num_bytes: of memory.
    """
    import resource

    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        used = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmData:"))) * 1024
    except (OSError, StopIteration):
        yield
        return
    before, hard = resource.getrlimit(resource.RLIMIT_DATA)
    bound = used + num_bytes
    if threading.active_count() > 1 or any(limit != resource.RLIM_INFINITY and limit < bound for limit in (before, hard)):
        yield
        return
    resource.setrlimit(resource.RLIMIT_DATA, (bound, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, hard))
