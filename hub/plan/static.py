"""What a run holds all the time: weights, gradients, the optimizer's state, counted from the model itself."""

from collections.abc import Iterable, Sequence

import torch

from hub.config.schema import AlgoConfig
from hub.models.four_bit import is_4bit
from hub.models.four_bit_tensor import FourBitTensor
from hub.plan.prediction import Part
from hub.plan.sizes import ROUNDING

MOMENTS = {"adamw": 2, "sgd": 0, "adafactor": 0, "adamw_8bit": 2, "paged_adamw": 2, "paged_adamw_8bit": 2}
"""Moments that an optimizer keeps for each weight."""

BLOCK_8BIT = 256
"""Elements of a moment in 8 bits that share a float32 scale (`bitsandbytes.optim.optimizer.Optimizer2State`)."""

MIN_8BIT = 4096
"""A weight with fewer elements keeps moments in 32 bits (`min_8bit_size`)."""


def rounded(num_bytes: int) -> int:
    """Bytes that torch's allocator gives for a tensor."""
    return -(-num_bytes // ROUNDING) * ROUNDING


def size_of(tensor: torch.Tensor) -> int:
    """Bytes that a tensor takes."""
    return rounded(tensor.numel() * tensor.element_size())


def weights_parts(model: torch.nn.Module, shards: int = 1, replicated: Iterable[torch.nn.Parameter] = ()) -> list[Part]:
    """The weights of a model, frozen and trained, by how they are stored.

    Args:
        model: with tensors of a FakeTensorMode, or real ones.
        shards: processes over which the weights are sharded.
        replicated: weights that each process has whole all the same.
    """
    whole = {id(parameter) for parameter in replicated}
    sums: dict[tuple[str, str], list[int]] = {}

    def add(name: str, stored: str, num_bytes: int, count: int) -> None:
        entry = sums.setdefault((name, stored), [0, 0])
        entry[0] += num_bytes
        entry[1] += count

    packed = {id(module.weight) for module in model.modules() if is_4bit(module)}
    for parameter in model.parameters():
        if isinstance(parameter, FourBitTensor):
            words, *scales = (part for part in parameter.parts if isinstance(part, torch.Tensor))
            add("frozen weights", "4 bits", size_of(words), parameter.numel())
            add("scales of 4-bit weights", "as bitsandbytes stores them", sum(map(size_of, scales)), scales[1].numel())
            continue
        parts = shards if id(parameter) not in whole else 1
        num_bytes = rounded(-(-parameter.numel() * parameter.element_size() // parts))
        if id(parameter) in packed:
            add("frozen weights", "4 bits", num_bytes, 2 * parameter.numel())
        else:
            kind = "trained weights" if parameter.requires_grad else "frozen weights"
            add(kind, str(parameter.dtype).removeprefix("torch."), num_bytes, parameter.numel())
    for module in model.modules():
        if is_4bit(module) and (state := getattr(module.weight, "quant_state", None)) is not None:
            scales = [state.absmax, state.code]
            if state.nested:
                scales += [state.offset, state.state2.absmax, state.state2.code]
            add("scales of 4-bit weights", "as bitsandbytes stores them", sum(map(size_of, scales)), state.absmax.numel())
    buffers = list({id(buffer): buffer for buffer in model.buffers()}.values())
    if buffers:
        add("buffers", "of the model and of the algorithm", sum(map(size_of, buffers)), sum(b.numel() for b in buffers))
    over = f", a {shards}th of them" if shards > 1 else ""
    return [
        Part(name, num_bytes, f"{count:,} numbers, {stored}{over if 'weights' in name and 'scales' not in name else ''}")
        for (name, stored), (num_bytes, count) in sums.items()
        if num_bytes
    ]


def trained_of(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The weights that train."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def gradients_part(trained: Sequence[torch.nn.Parameter], shards: int = 1) -> Part:
    """The gradients, each in its weight's type."""
    num_bytes = sum(rounded(-(-p.numel() * p.element_size() // shards)) for p in trained)
    kinds = " and ".join(sorted({str(p.dtype).removeprefix("torch.") for p in trained}))
    return Part("gradients", num_bytes, f"one for each of {sum(p.numel() for p in trained):,} trained numbers, {kinds}")


def optimizer_part(algo: AlgoConfig, trained: Sequence[torch.nn.Parameter], shards: int = 1) -> Part:
    """The optimizer's state.

    Args:
        algo: the options: `optimizer`.
        trained: the weights that train.
        shards: processes over which it is sharded.
    """
    name = algo.optimizer
    if name.startswith("paged"):
        return Part("optimizer", 0, f"algo.optimizer={name}: its state is in CPU memory that the GPU pages in")
    num_bytes = 0
    for parameter in trained:
        numel = -(-parameter.numel() // shards)
        if name == "adafactor":
            rows = (
                sum(parameter.numel() // parameter.shape[dim] for dim in (-1, -2)) if parameter.ndim >= 2 else parameter.numel()
            )
            num_bytes += rounded(4 * rows // shards)
        elif name == "adamw_8bit" and parameter.numel() >= MIN_8BIT:
            num_bytes += 2 * (rounded(numel) + rounded(4 * -(-numel // BLOCK_8BIT)))
        elif name == "adamw_8bit":
            num_bytes += 2 * rounded(4 * numel)
        else:
            num_bytes += MOMENTS[name] * rounded(numel * parameter.element_size())
    moments = MOMENTS[name]
    words = f"algo.optimizer={name}: " + (f"{moments} moments for each trained number" if moments else "no moments")
    return Part("optimizer", num_bytes, words)
