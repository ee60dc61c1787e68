"""How several processes hold one model: each a whole copy (`ddp`), or each a share of every layer (`fsdp`).

A strategy places the model, brings the ranks' gradients together, measures their norm, and hands out full weights for
saving. The loop knows nothing else about it. Gradients are sums over ranks in both.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from hub.errors import ConfigError
from hub.train.distributed import Group, same_on_all_ranks, sum_gradients


class Replicated:
    """Every process holds the whole model. Also the strategy of a single process."""

    name = "ddp"
    recovers_memory = True
    """A pass that runs out of memory can be done again: it waits for no other rank."""

    def place(self, model: Any) -> None:
        """Make a freshly built model ready to train. The same weights on all ranks afterwards."""
        same_on_all_ranks(p.data for p in model.parameters() if p.requires_grad)

    def reduce(self, parameters: list[torch.nn.Parameter]) -> None:
        """Sum the gradients over the ranks."""
        sum_gradients(p for p in parameters if not isinstance(p, DTensor))

    def clip(self, parameters: list[torch.nn.Parameter], bound: float) -> float:
        """Scale the gradients down to a norm of `bound`. Returns their norm before."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        whole = [g for g in gradients if not isinstance(g, DTensor)]
        shares = [g for g in gradients if isinstance(g, DTensor)]
        norms = [torch.nn.utils.get_total_norm(part) for part in (whole, shares) if part]
        norm = math.sqrt(sum(float(full(n)) ** 2 for n in norms))
        if norm > bound:
            # Not finite: nothing to scale, the loop leaves such a step out.
            for gradient in gradients:
                gradient.mul_(bound / (norm + 1e-6))
        return norm


class FullyShard(Replicated):
    """FSDP2: every process holds a share of each weight, of its gradient and of the optimizer's state.

    Weights that train in float32 beside frozen ones of another type (adapters) are small and stay whole on every process.
    """

    name = "fsdp"
    recovers_memory = False

    def __init__(self, group: Group, compute_dtype: torch.dtype, cpu_offload: bool) -> None:
        self._device, self._compute_dtype = group.device, compute_dtype
        self._mesh = init_device_mesh(group.device.type, (group.world,))
        self._offload: OffloadPolicy = CPUOffloadPolicy() if cpu_offload else OffloadPolicy()

    def place(self, model: Any) -> None:
        """Shard layer by layer, by the model's own layer classes."""
        trained = [p for p in model.parameters() if p.requires_grad]
        frozen = [p for p in model.parameters() if not p.requires_grad]
        whole = trained if frozen else []
        for parameter in whole:
            parameter.data = parameter.data.to(self._device)
        mixed = not frozen and self._compute_dtype != torch.float32
        precision = MixedPrecisionPolicy(
            param_dtype=self._compute_dtype if mixed else None,
            reduce_dtype=torch.float32 if mixed else None,
            cast_forward_inputs=False,
        )
        options: dict[str, Any] = {"mesh": self._mesh, "mp_policy": precision, "offload_policy": self._offload}
        # Else the outermost weights stay gathered after an evaluation, and are not those that the optimizer knows.
        options["reshard_after_forward"] = True
        layers = layer_classes(model)
        for module in [m for m in model.modules() if type(m).__name__ in layers]:
            fully_shard(module, ignored_params=set(whole), **options)
        fully_shard(model, ignored_params=set(whole), **options)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        same_on_all_ranks(p.data for p in whole)


def choose_strategy(
    asked: str, group: Group, weights_bytes: int, trained_share: float, compute_dtype: torch.dtype, cpu_offload: bool
) -> tuple[Replicated, str]:
    """The strategy of `launch.strategy`, and why.

    Args:
        asked: auto, ddp or fsdp.
        group: the processes.
        weights_bytes: the weights as they are held.
        trained_share: share of them that trains in float32 with a gradient and two moments; 0 for adapters.
        compute_dtype: type of the arithmetic.
        cpu_offload: keep the shares in the host's memory.

    Raises:
        ConfigError: an option does not fit to the strategy.
    """
    if asked == "fsdp" and group.world == 1:
        raise ConfigError("launch.strategy=fsdp needs several processes. Type launch.nproc_per_node=2 or launch.strategy=auto")
    if group.world == 1:
        name, why = "ddp", "one process"
    elif asked in ("ddp", "fsdp"):
        name, why = asked, "asked for"
    elif group.device.type != "cuda":
        name, why = "ddp", "on a CPU every process has the same memory"
    else:
        room = torch.cuda.get_device_properties(group.device).total_memory
        needed = weights_bytes * (1 + 3 * trained_share)
        share = f"weights, gradients and optimizer take {needed / room:.0%} of a GPU"
        name, why = ("ddp", f"{share}: each holds all") if needed < 0.7 * room else ("fsdp", f"{share}: they are shared out")
    if cpu_offload and name != "fsdp":
        raise ConfigError("launch.cpu_offload goes with launch.strategy=fsdp only. Type launch.strategy=fsdp or leave it out")
    return (FullyShard(group, compute_dtype, cpu_offload), why) if name == "fsdp" else (Replicated(), why)


def layer_classes(model: Any) -> set[str]:
    """Class names of the layers that the model itself declares to belong together."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return set(getattr(base, "_no_split_modules", None) or ())


def full(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor that may be shared out. All ranks must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def full_weights(model: Any, names: Iterable[str] | None = None) -> dict[str, torch.Tensor]:
    """Whole weights on the CPU by name; on rank 0 only, empty elsewhere. All ranks must ask.

    Args:
        model: placed by a strategy.
        names: which ones. None: all when the model is saved as a whole, those that train when it carries adapters.
    """
    is_main = not dist.is_initialized() or dist.get_rank() == 0
    state = model.state_dict(keep_vars=True)
    if names is not None:
        wanted = set(names)
    elif hasattr(model, "peft_config"):
        wanted = {name for name, p in model.named_parameters() if p.requires_grad}
    else:
        wanted = set(state)
    found: dict[str, torch.Tensor] = {}
    copies: dict[int, torch.Tensor] = {}
    for name, tensor in state.items():
        if name not in wanted:
            continue
        # Tied weights are one tensor and must stay one, or they would be written twice.
        whole = copies.get(id(tensor))
        if whole is None:
            whole = full(tensor.detach())
            whole = copies[id(tensor)] = whole.cpu() if is_main else torch.empty(0)
        if is_main:
            found[name] = whole
    return found


def like(parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A whole tensor, shared out as a parameter is. All ranks must ask."""
    if not isinstance(parameter, DTensor):
        return value
    return distribute_tensor(value.to(parameter.device_mesh.device_type), parameter.device_mesh, parameter.placements)
