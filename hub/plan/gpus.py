"""The GPUs that a plan is for: the one that was typed, those of this machine, or all that are known. No torch."""

import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace

from hub.config.option import AUTO
from hub.config.plan import PlanConfig
from hub.errors import ConfigError
from hub.system.gpus import num_visible_gpus
from hub.system.known_gpus import GIB, by_driver_name, find_gpu, known_gpus
from hub.system.known_gpus import Gpu as Gpu

MIB = 2**20


def planned_gpu(plan: PlanConfig) -> Gpu | None:
    """The GPU that a plan is for. None: none was typed, and there is none here.

    Raises:
        ConfigError: what was typed is unknown, or a table of GPUs has a mistake.
    """
    gpus = known_gpus(plan.gpus_file)
    return find_gpu(plan.gpu, gpus) if plan.gpu != AUTO else gpu_here(gpus)


def planned_number(plan: PlanConfig, nproc_per_node: int | str, nnodes: int = 1) -> int:
    """Number of GPUs that a plan is for: `plan.gpus`, else the processes of the run, else the GPUs here, else one.

    Args:
        plan: the options.
        nproc_per_node: `launch.nproc_per_node`.
        nnodes: `launch.nnodes`.
    """
    if isinstance(plan.gpus, int):
        return plan.gpus
    if isinstance(nproc_per_node, int):
        return nproc_per_node * nnodes
    here = num_visible_gpus() if plan.gpu == AUTO else 0
    return max(here, 1) * nnodes


def check_measurable(plan: PlanConfig, nproc_per_node: int | str, nnodes: int = 1) -> None:
    """Check that the GPUs of a plan are here, so that it can be measured. See `planned_number`.

    Raises:
        ConfigError: they are not.
    """
    here, number = gpu_here(known_gpus(plan.gpus_file)), planned_number(plan, nproc_per_node, nnodes)
    if here is None:
        raise ConfigError("plan.measure=true measures on this machine, which has no known GPU. Leave it out")
    asked = planned_gpu(plan)
    if asked is not None and asked.name != here.name:
        raise ConfigError(f"plan.measure=true measures on this machine's {here.name}, not on {asked.name}. Leave out either")
    if number > (present := num_visible_gpus()):
        raise ConfigError(f"plan.measure=true measures on {number} GPUs, and this machine has {present}. Leave it out")


def gpu_here(gpus: Mapping[str, Gpu]) -> Gpu | None:
    """The first GPU of this machine, with the memory that its driver reports. None: there is none, or it is not known."""
    if not num_visible_gpus() or shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not (lines := done.stdout.splitlines()):
        return None
    name, _, memory = lines[0].rpartition(",")
    reported = float(memory) * MIB if memory.strip().isdigit() else None
    if (gpu := by_driver_name(name, gpus, reported)) is None:
        return None
    if reported is None or reported >= gpu.memory_bytes:  # nvidia-smi counts what the driver keeps for itself as well
        return gpu
    return replace(gpu, memory_bytes=round(reported), memory_is_label=False)  # a slice of it (MIG)


def smallest_that_fits(
    gpus: Mapping[str, Gpu], fits: Callable[[Gpu], bool], has: Callable[[Gpu], bool] = lambda _: True
) -> Gpu | None:
    """The GPU of least memory on which a run fits. None: it fits on none.

    More memory is never worse, so a few questions are enough for a long table. Of GPUs with equal memory the first in the
    table is taken.

    Args:
        gpus: those to choose from.
        fits: whether the run fits on one.
        has: whether one has the instructions that the run needs, such as bfloat16.
    """
    ordered = sorted((gpu for gpu in gpus.values() if has(gpu)), key=lambda gpu: (gpu.memory_bytes, gpu.bandwidth, gpu.name))
    low, high = 0, len(ordered)
    while low < high:
        middle = (low + high) // 2
        if fits(ordered[middle]):
            high = middle
        else:
            low = middle + 1
    return ordered[low] if low < len(ordered) else None


def gib(num_bytes: float) -> str:
    """Bytes in GiB, with as many digits as a plan can answer for."""
    value = num_bytes / GIB
    return f"{value:.2f} GiB" if value < 10 else f"{value:.1f} GiB"
