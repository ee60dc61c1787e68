"""How a model is distributed over processes: replicated on each (`ddp`), or sharded layer by layer (`fsdp`).

A strategy places the model, reduces the gradients over the ranks, computes their norm, and all-gathers the weights for saving.
The training loop knows nothing else about it. Gradients are summed over ranks, not averaged, in every strategy.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from hub.models.four_bit import PlainFourBitWeight, is_4bit
from hub.models.patches import patches_of
from hub.models.structure import outside_text
from hub.parallel.group import Group, same_on_all_ranks, sum_gradients
from hub.parallel.optimizer_state import Numbers, flat_optimizer_state, restore_optimizer, trained_parameters
from hub.parallel.reparametrization import Reparametrization
from hub.parallel.sharded_tensors import StoredTensors, local_region, local_tensor


class Replicated:
    """Every process holds a full copy of the model. Also the strategy of a single process."""

    name = "ddp"
    recovers_memory = True
    """Whether an out-of-memory micro-batch can be retried: no other rank waits inside it for a collective."""

    shards_weights = False
    """Whether weights are sharded layer by layer, so that the full model need not fit on one device."""

    has_engine = False
    """Whether backward passes must go through the strategy, because an engine owns the gradients."""

    reparametrization = Reparametrization()
    """Computes the weights from what trains. `fit` replaces it for algorithms whose trained parameters are not the weights."""

    def num_state_shards(self, world: int) -> int:
        """Number of processes over which gradients and optimizer state are sharded."""
        return 1

    def place(self, model: torch.nn.Module) -> None:
        """Make a freshly built model ready to train. Afterwards all ranks have the same weights."""
        same_on_all_ranks(p.data for p in model.parameters() if p.requires_grad)

    def start(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> torch.nn.Module:
        """The module to call in forward passes, once there is an optimizer: the model itself, or an engine around it."""
        return model

    def whole(self, tensor: torch.Tensor) -> torch.Tensor:
        """The full tensor of a weight or buffer of the model, all-gathered if sharded. All ranks must call it."""
        return full(tensor)

    def shape(self, parameter: torch.Tensor) -> tuple[int, ...]:
        """Shape of the full tensor of a parameter."""
        return tuple(parameter.shape)

    def optimizer_state(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[dict[str, torch.Tensor], Numbers]:
        """The optimizer's state for a checkpoint: tensors under `parameter name/state name`, and values for JSON."""
        return flat_optimizer_state(model, optimizer)

    def load(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        weights: StoredTensors,
        moments: StoredTensors,
        numbers: Numbers,
    ) -> None:
        """Load the trained weights and the result of `optimizer_state` from a checkpoint. Each process reads its own shards."""
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                local_tensor(parameter).copy_(weights.read(name, local_region(parameter)))
        restore_optimizer(model, optimizer, moments, numbers)

    def backward(self, loss: torch.Tensor) -> None:
        """The backward pass of one micro-batch."""
        loss.backward()

    def update(self, optimizer: torch.optim.Optimizer, bound: float | None, loss: torch.Tensor) -> tuple[float, float]:
        """Reduce the gradients, clip them to a norm of `bound`, and step the optimizer.

        The weights do not change if the loss or the gradient norm is not finite.

        Args:
            optimizer: of the weights that train.
            bound: maximum gradient norm. None: no clipping.
            loss: the step's loss, a scalar.

        Returns:
            The loss, and the gradient norm before clipping. Both are read with one synchronization.
        """
        parameters = trained_parameters(optimizer)
        self.reduce(parameters)
        self.reparametrization.project_gradients()
        gradients = [p.grad for p in parameters if p.grad is not None]
        total, norm = torch.stack([loss.double(), norm_of(gradients).to(loss.device)]).tolist()
        if not (math.isfinite(total) and math.isfinite(norm)):
            return total, norm
        if bound is not None and norm > bound:
            torch._foreach_mul_([local_tensor(gradient) for gradient in gradients], bound / (norm + 1e-6))
        optimizer.step()
        self.reparametrization.follow(optimizer)
        return total, norm

    def reduce(self, parameters: list[torch.nn.Parameter]) -> None:
        """Sum the gradients over the ranks."""
        sum_gradients(p for p in parameters if not isinstance(p, DTensor))


class FullyShard(Replicated):
    """FSDP2: weights, gradients and optimizer state are sharded over the processes.

    Weights that train beside frozen ones (adapters) are small and stay replicated. So do those that the family keeps in another
    dtype than most: FSDP2 can't shard weights of two dtypes together if they train.
    """

    name = "fsdp"
    recovers_memory = False
    shards_weights = True

    def __init__(self, group: Group, compute_dtype: torch.dtype, cpu_offload: bool) -> None:
        self._device, self._compute_dtype = group.device, compute_dtype
        self._mesh = init_device_mesh(group.device.type, (group.world,))
        self._offload: OffloadPolicy = CPUOffloadPolicy() if cpu_offload else OffloadPolicy()

    def num_state_shards(self, world: int) -> int:
        return world

    def place(self, model: torch.nn.Module) -> None:
        """Shard layer by layer, by the layer classes that the model itself declares."""
        trained = [p for p in model.parameters() if p.requires_grad]
        unused = {id(p) for p in outside_text(model)}  # never all-gathered, so it may be sharded beside what trains
        frozen = [p for p in model.parameters() if not p.requires_grad and id(p) not in unused]
        numbers: Counter[torch.dtype] = Counter()
        for parameter in trained:
            numbers[parameter.dtype] += parameter.numel()
        replicated = trained if frozen else [p for p in trained if p.dtype != numbers.most_common(1)[0][0]]
        for parameter in replicated:
            parameter.data = parameter.data.to(self._device)
        mixed = not frozen and self._compute_dtype != torch.float32
        precision = MixedPrecisionPolicy(
            param_dtype=self._compute_dtype if mixed else None,
            reduce_dtype=torch.float32 if mixed else None,
            cast_forward_inputs=False,
        )
        shard = partial(
            fully_shard,
            mesh=self._mesh,
            mp_policy=precision,
            offload_policy=self._offload,
            ignored_params=set(replicated),
            # Otherwise the root's weights stay all-gathered after an evaluation, and are not those that the optimizer has.
            reshard_after_forward=True,
        )
        patches = patches_of(model)
        for module in model.modules():
            if is_4bit(module):
                patches.apply(PlainFourBitWeight(module, self._device))
        layers = layer_classes(model)
        for module in [m for m in model.modules() if type(m).__name__ in layers]:
            shard(module)
        shard(model)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        same_on_all_ranks(p.data for p in replicated)


def norm_of(gradients: list[torch.Tensor]) -> torch.Tensor:
    """Norm of all gradients together, sharded or not. Scalar, float64. If any is sharded, all ranks must call it."""
    unsharded = [g for g in gradients if not isinstance(g, DTensor)]
    sharded: list[torch.Tensor] = [g for g in gradients if isinstance(g, DTensor)]
    norms = [full(total_norm(part)).double() for part in (unsharded, sharded) if part]
    if not norms:
        return torch.zeros((), dtype=torch.float64)
    return torch.stack([norm.to(norms[0].device) for norm in norms]).square().sum().sqrt()


def total_norm(gradients: list[torch.Tensor]) -> torch.Tensor:
    """Norm of all gradients together, in at least float32. Scalar."""
    if all(gradient.dtype != torch.bfloat16 for gradient in gradients):
        return torch.nn.utils.get_total_norm(gradients)
    # torch's function would round each norm, and their sum, to bfloat16.
    norms: list[torch.Tensor] = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
    total: torch.Tensor = torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))
    return total


def layer_classes(model: torch.nn.Module) -> set[str]:
    """Class names of the layers that the model itself declares as not to be split."""
    get_base_model = getattr(model, "get_base_model", None)  # of a PEFT model; the hub does not require peft
    base = model if get_base_model is None else get_base_model()
    return set(getattr(base, "_no_split_modules", None) or ())


def full(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor, all-gathered if it is sharded. All ranks must call it."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def full_weights(
    model: torch.nn.Module, names: Iterable[str] | None = None, whole: Callable[[torch.Tensor], torch.Tensor] = full
) -> dict[str, torch.Tensor]:
    """Full weights on the CPU by name, on rank 0; an empty dictionary elsewhere. All ranks must call it.

    Args:
        model: placed by a strategy.
        names: weights to return. None: those that train if the model has adapters, otherwise all.
        whole: the strategy's function from a tensor of the model to the full tensor.
    """
    is_main = not dist.is_initialized() or dist.get_rank() == 0
    state = model.state_dict(keep_vars=True)
    if names is not None:
        wanted = set(names)
    elif hasattr(model, "peft_config"):
        # Of tied weights, which are one tensor, all names.
        wanted = {name for name, tensor in state.items() if tensor.requires_grad}
    else:
        wanted = set(state)
    weights: dict[str, torch.Tensor] = {}
    copies: dict[int, torch.Tensor] = {}
    for name, tensor in state.items():
        if name not in wanted:
            continue
        # Tied weights are one tensor and must stay one, otherwise they would be written twice.
        copy = copies.get(id(tensor))
        if copy is None:
            copy = whole(tensor)
            copy = copies[id(tensor)] = copy.cpu() if is_main else torch.empty(0)
        if is_main:
            weights[name] = copy
    return weights
