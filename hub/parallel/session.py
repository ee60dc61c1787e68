"""What a backend needs before it loads a model: process group, accelerator, precision, seed."""

import logging
import os
import warnings
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers.utils import logging as transformers_logging

from hub.config.option import AUTO
from hub.config.schema import RunConfig
from hub.errors import ConfigError
from hub.parallel.group import Group, start_group
from hub.parallel.strategy import Replicated
from hub.run import ASKED_FOR, Run
from hub.system.memory import GIB, bound_for_torch, outside_torch


@dataclass
class Session:
    """Process group, accelerator, precision and strategy of one process."""

    group: Group
    accelerator: Accelerator
    compute_dtype: torch.dtype
    """dtype of the arithmetic (under autocast) and of frozen weights."""

    strategy: Replicated = field(default_factory=Replicated)
    """How the model is distributed over the processes. Chosen when the model is loaded."""

    @property
    def device(self) -> torch.device:
        return self.group.device

    def autocast(self) -> torch.autocast:
        """A context with arithmetic in `compute_dtype`. It does nothing in float32."""
        return torch.autocast(self.device.type, self.compute_dtype, enabled=self.compute_dtype != torch.float32)


def start_session(cfg: RunConfig, run: Run) -> Session:
    """Initialize the process group, choose the precision, seed everything, set up the tracker."""
    quiet_libraries()
    group = start_group()
    limit_memory(cfg.launch.gpu_memory_gb, group.device, group.world)
    dtype, why = choose_dtype(cfg.model.dtype, group.device)
    if cfg.chosen_task.compares_gradients and dtype == torch.float32:
        why = f"{cfg.chosen_task.name} compares gradients"
    tool = None if cfg.track.tool == "none" else cfg.track.tool
    accelerator = Accelerator(cpu=group.device.type == "cpu", log_with=tool, project_dir=str(run.path))
    set_seed(cfg.algo.seed)
    if cfg.algo.deterministic:
        torch.use_deterministic_algorithms(True)
        torch.backends.cuda.enable_mem_efficient_sdp(False)  # its backward pass accumulates in an undefined order
    name = str(dtype).removeprefix("torch.")
    run.write_plan(dtype=name, dtype_because=why, num_processes=group.world, device=_device_name(group.device))
    processes = "1 process" if group.world == 1 else f"{group.world} processes"
    run.say(f"arithmetic in {name} ({why}), {processes} on {_device_name(group.device)}")
    return Session(group, accelerator, dtype)


def limit_memory(limit: float | None, device: torch.device, world: int = 1) -> None:
    """Limit the GPU memory of this process. What the driver and NCCL take for it counts too.

    Args:
        limit: GiB. None: no limit.
        device: this process's device.
        world: number of processes.

    Raises:
        ConfigError: there is no GPU, it has less memory, or the limit leaves nothing for torch.
    """
    if device.type != "cuda":
        if limit is not None:
            raise ConfigError(f"launch.gpu_memory_gb={limit:g}: there is no GPU here. Leave it out")
        return
    total = torch.cuda.get_device_properties(device).total_memory
    if limit is not None and limit * GIB > total:
        raise ConfigError(
            f"launch.gpu_memory_gb={limit:g} is more than the GPU has ({total / GIB:.1f}). Type less, or leave it out"
        )
    for_torch = bound_for_torch(total, limit, world)
    if not for_torch:
        least = outside_torch(world) / GIB
        raise ConfigError(f"launch.gpu_memory_gb={limit:g} leaves nothing: CUDA itself takes {least:g} of it. Type more")
    torch.cuda.empty_cache()  # memory that an earlier run in this process cached must not count
    torch.cuda.reset_peak_memory_stats(device)
    for number in range(torch.cuda.device_count()):
        torch.cuda.set_per_process_memory_fraction(for_torch / total, number)


def quiet_libraries() -> None:
    """Turn off the progress bars and warnings of transformers and torch, which would hide the hub's own lines."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels that it can do without
    warnings.filterwarnings("ignore", module="transformers")
    warnings.filterwarnings("ignore", module="torch")
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # otherwise DeepSpeed, if installed, warns that it found no GPU


def choose_dtype(asked: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype of the arithmetic, and why."""
    if asked != AUTO:
        dtype = getattr(torch, asked)
        assert isinstance(dtype, torch.dtype)
        return dtype, ASKED_FOR
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "the GPU has it"
        return torch.float32, "the GPU has no bfloat16"
    if _cpu_has_bfloat16():
        return torch.bfloat16, "the CPU has it"
    return torch.float32, "the CPU has no fast bfloat16"


def _cpu_has_bfloat16() -> bool:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            flags = next((line for line in info if line.startswith(("flags", "Features"))), "").split()
    except OSError:
        return False
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16", "bf16"))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
