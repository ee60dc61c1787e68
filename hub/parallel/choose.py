"""Which strategy a run takes, and why."""

import torch

from hub.config.option import AUTO
from hub.config.schema import ZERO, LaunchConfig
from hub.errors import ConfigError
from hub.parallel.group import Group
from hub.parallel.strategy import FullyShard, Replicated
from hub.parallel.zero import Zero
from hub.run import ASKED_FOR
from hub.system.memory import allowed_memory


def choose_strategy(
    launch: LaunchConfig, group: Group, weights_bytes: int, trained_share: float, compute_dtype: torch.dtype
) -> tuple[Replicated, str]:
    """The strategy of `launch.strategy`, and why.

    Args:
        launch: for `strategy` (any but split), `cpu_offload` and `deepspeed_config`.
        group: the processes.
        weights_bytes: the weights as they are held.
        trained_share: share of them that trains, with a gradient and two moments of the same type; 0 for adapters.
        compute_dtype: type of the arithmetic.

    Raises:
        ConfigError: an option does not fit to the strategy.
    """
    asked = launch.strategy
    if asked in ZERO and trained_share == 0:
        raise ConfigError(
            f"launch.strategy={asked} trains whole models only. For adapters and OSFT type launch.strategy=fsdp or ddp"
        )
    if group.world == 1:
        name, why = "ddp", "one process"
    elif asked != AUTO:
        name, why = asked, ASKED_FOR
    elif group.device.type != "cuda":
        name, why = "ddp", "on a CPU every process has the same memory"
    else:
        room = allowed_memory(group.device)
        needed = weights_bytes * (1 + 3 * trained_share)
        share = f"weights, gradients and optimizer take {needed / room:.0%} of a GPU"
        name, why = ("ddp", f"{share}: each holds all") if needed < 0.7 * room else ("fsdp", f"{share}: they are shared out")
    if launch.cpu_offload and name == "ddp":
        raise ConfigError("launch.cpu_offload goes with sharing out only. Type launch.strategy=fsdp or leave it out")
    if name in ZERO:
        return Zero(int(name[-1]), group, compute_dtype, launch.cpu_offload, launch.deepspeed_config), why
    return (FullyShard(group, compute_dtype, launch.cpu_offload), why) if name == "fsdp" else (Replicated(), why)
