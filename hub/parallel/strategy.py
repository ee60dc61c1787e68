"""How several processes hold one model: each a whole copy (`ddp`), or each a share of every layer (`fsdp`).

A strategy places the model, brings the ranks' gradients together, measures their norm, and hands out full weights for
saving. The loop knows nothing else about it. Gradients are sums over ranks in both.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from hub.models.four_bit import hold_as_plain_tensor, is_4bit
from hub.parallel.group import Group, same_on_all_ranks, sum_gradients
from hub.parallel.optimizer_state import flat_optimizer_state, restore_optimizer
from hub.parallel.reparametrization import Coordinates
from hub.parallel.sharded_tensors import StoredTensors, local, place_of


class Replicated:
    """Every process holds the whole model. Also the strategy of a single process."""

    name = "ddp"
    recovers_memory = True
    """A pass that runs out of memory can be done again: it waits for no other rank."""

    shares_weights = False
    """Weights are shared out layer by layer, so that the whole model need not fit on a device."""

    has_engine = False
    """Backward passes have to go through the strategy, since an engine takes the gradients."""

    coordinates = Coordinates()
    """How the weights follow from what trains. `fit` sets another one for algorithms that have coordinates of their own."""

    def shares_of_state(self, world: int) -> int:
        """Processes among which gradients and optimizer state are shared out."""
        return 1

    def place(self, model: Any) -> None:
        """Make a freshly built model ready to train. The same weights on all ranks afterwards."""
        same_on_all_ranks(p.data for p in model.parameters() if p.requires_grad)

    def start(self, model: Any, optimizer: torch.optim.Optimizer) -> Any:
        """What the passes go through, once there is an optimizer: the model itself, or an engine around it."""
        return model

    def whole(self, tensor: torch.Tensor) -> torch.Tensor:
        """The whole of a weight or buffer of the model. All ranks must ask."""
        return full(tensor)

    def shape(self, parameter: torch.Tensor) -> tuple[int, ...]:
        """Shape of the whole of a parameter."""
        return tuple(parameter.shape)

    def optimizer_state(self, model: Any, optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The optimizer's state for a checkpoint: tensors under `parameter name/state name`, and numbers for JSON."""
        return flat_optimizer_state(model, optimizer)

    def load(
        self,
        model: Any,
        optimizer: torch.optim.Optimizer,
        weights: StoredTensors,
        moments: StoredTensors,
        numbers: dict[str, Any],
    ) -> None:
        """Take weights that train, and what `optimizer_state` gave, out of a checkpoint: each process what it holds."""
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                local(parameter).copy_(weights.read(name, place_of(parameter)))
        restore_optimizer(model, optimizer, moments, numbers)

    def backward(self, loss: torch.Tensor) -> None:
        """The backward pass of one micro-batch."""
        loss.backward()

    def update(self, optimizer: torch.optim.Optimizer, bound: float | None, loss: torch.Tensor) -> tuple[float, float]:
        """Bring the gradients together, scale them down to a norm of `bound`, and change the weights.

        The weights stay as they are when the loss or the gradients' norm is not finite.

        Args:
            optimizer: of the weights that train.
            bound: of the gradients' norm. None: none.
            loss: of the step, a scalar.

        Returns:
            The loss, and the norm before. They are waited for once, together.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.reduce(parameters)
        self.coordinates.project_gradients()
        gradients = [p.grad for p in parameters if p.grad is not None]
        found, norm = torch.stack([loss.double(), norm_of(gradients).to(loss.device)]).tolist()
        if not (math.isfinite(found) and math.isfinite(norm)):
            return found, norm
        if bound is not None and norm > bound:
            torch._foreach_mul_([local(gradient) for gradient in gradients], bound / (norm + 1e-6))
        optimizer.step()
        self.coordinates.follow(optimizer)
        return found, norm

    def reduce(self, parameters: list[torch.nn.Parameter]) -> None:
        """Sum the gradients over the ranks."""
        sum_gradients(p for p in parameters if not isinstance(p, DTensor))


class FullyShard(Replicated):
    """FSDP2: every process holds a share of each weight, of its gradient and of the optimizer's state.

    Weights that train in float32 beside frozen ones of another type (adapters) are small and stay whole on every process.
    """

    name = "fsdp"
    recovers_memory = False
    shares_weights = True

    def __init__(self, group: Group, compute_dtype: torch.dtype, cpu_offload: bool) -> None:
        self._device, self._compute_dtype = group.device, compute_dtype
        self._mesh = init_device_mesh(group.device.type, (group.world,))
        self._offload: OffloadPolicy = CPUOffloadPolicy() if cpu_offload else OffloadPolicy()

    def shares_of_state(self, world: int) -> int:
        return world

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
        for module in model.modules():
            if is_4bit(module):
                hold_as_plain_tensor(module, self._device)
        layers = layer_classes(model)
        for module in [m for m in model.modules() if type(m).__name__ in layers]:
            fully_shard(module, ignored_params=set(whole), **options)
        fully_shard(model, ignored_params=set(whole), **options)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        same_on_all_ranks(p.data for p in whole)


def norm_of(gradients: list[torch.Tensor]) -> torch.Tensor:
    """Norm of all gradients together, whole ones and shares. Scalar, float64. All ranks must ask where there are shares."""
    whole = [g for g in gradients if not isinstance(g, DTensor)]
    shares = [g for g in gradients if isinstance(g, DTensor)]
    norms = [full(total_norm(part)).double() for part in (whole, shares) if part]
    if not norms:
        return torch.zeros((), dtype=torch.float64)
    return torch.stack([norm.to(norms[0].device) for norm in norms]).square().sum().sqrt()


def total_norm(gradients: list[torch.Tensor]) -> torch.Tensor:
    """Norm of all of them together, in float32 at least. Scalar."""
    if all(gradient.dtype != torch.bfloat16 for gradient in gradients):
        return torch.nn.utils.get_total_norm(gradients)
    # That would round each norm, and their sum, to bfloat16.
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
    return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))


def layer_classes(model: Any) -> set[str]:
    """Class names of the layers that the model itself declares to belong together."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return set(getattr(base, "_no_split_modules", None) or ())


def full(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor that may be shared out. All ranks must ask."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def full_weights(
    model: Any, names: Iterable[str] | None = None, whole: Callable[[torch.Tensor], torch.Tensor] = full
) -> dict[str, torch.Tensor]:
    """Whole weights on the CPU by name; on rank 0 only, empty elsewhere. All ranks must ask.

    Args:
        model: placed by a strategy.
        whole: the strategy's way from a tensor of the model to the whole of it.
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
        copy = copies.get(id(tensor))
        if copy is None:
            copy = whole(tensor)
            copy = copies[id(tensor)] = copy.cpu() if is_main else torch.empty(0)
        if is_main:
            found[name] = copy
    return found
