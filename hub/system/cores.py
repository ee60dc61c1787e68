"""How many cores this process may use."""

import os
from pathlib import Path


def usable_cores() -> int:
    """Cores that this process may use: a container or a scheduler may give it fewer than the machine has. At least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
        cores = min(cores, -(-int(quota) // int(period)))
    except (OSError, ValueError):  # no control groups, or no limit
        pass
    return max(1, cores)
