"""Choose the distribution strategy of a run, with the reason."""

import torch

from hub.config.launch import ZERO
from hub.config.option import AUTO
from hub.config.schema import LaunchConfig
from hub.errors import ConfigError
from hub.parallel.group import Group
from hub.parallel.strategy import FullyShard, Replicated
from hub.parallel.zero import Zero
from hub.run import ASKED_FOR
from hub.system.memory import allowed_memory


def choose_strategy(
    launch: LaunchConfig, group: Group, weights_bytes: int, trained_fraction: float, compute_dtype: torch.dtype
) -> tuple[Replicated, str]:
    """Return the strategy for `launch.strategy`, and the reason for plan.json.

    Args:
        launch: for `strategy` (any but split), `cpu_offload` and `deepspeed_config`.
        group: the process group.
        weights_bytes: size of the weights in memory.
        trained_fraction: fraction of them that trains, with a gradient and two moments of the same dtype; 0 for adapters.
        compute_dtype: dtype of the arithmetic.

    Raises:
        ConfigError: an option does not work with the strategy.
    """
    room = allowed_memory(group.device) if group.device.type == "cuda" else None
    name, why = strategy_name(launch, group.world, room, weights_bytes, trained_fraction)
    if name in ZERO:
        return Zero(int(name[-1]), group, compute_dtype, launch.cpu_offload, launch.deepspeed_config), why
    return (FullyShard(group, compute_dtype, launch.cpu_offload), why) if name == "fsdp" else (Replicated(), why)


def strategy_name(
    launch: LaunchConfig, world: int, room: float | None, weights_bytes: int, trained_fraction: float
) -> tuple[str, str]:
    """Return the name of the strategy for `launch.strategy`, and the reason.

    Args:
        launch: for `strategy` (any but split) and `cpu_offload`.
        world: number of processes.
        room: bytes of a GPU that a process may use. None: there is no GPU.
        weights_bytes: size of the weights in memory.
        trained_fraction: fraction of them that trains, with a gradient and two moments of the same dtype; 0 for adapters.

    Raises:
        ConfigError: an option does not work with the strategy.
    """
    asked = launch.strategy
    if asked in ZERO and trained_fraction == 0:
        raise ConfigError(
            f"launch.strategy={asked} trains whole models only, and this algorithm freezes weights. "
            "Type launch.strategy=fsdp or ddp"
        )
    if world == 1:
        name, why = "ddp", "one process"
    elif asked != AUTO:
        name, why = asked, ASKED_FOR
    elif room is None:
        name, why = "ddp", "on a CPU every process has the same memory"
    else:
        needed = weights_bytes * (1 + 3 * trained_fraction)
        needs = f"weights, gradients and optimizer take {needed / room:.0%} of a GPU"
        name, why = (
            ("ddp", f"{needs}, so each GPU has all") if needed < 0.7 * room else ("fsdp", f"{needs}, so they are sharded")
        )
    if launch.cpu_offload and name == "ddp":
        raise ConfigError("launch.cpu_offload needs a sharded model. Type launch.strategy=fsdp, or leave cpu_offload out")
    return name, why
