"""The token budget of a micro-batch, and how many layers use activation checkpointing, if the user leaves both to the hub.

On a GPU both follow from measured passes forward and backward, without checkpointing and with all layers checkpointed, on a
few of the run's own samples and on half of them. Memory is linear in the number of tokens, so these predict the memory of
any token budget and any number of checkpointed layers.
"""

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

from hub.config.option import AUTO
from hub.config.schema import AlgoConfig
from hub.errors import ConfigError
from hub.models.four_bit_tensor import bytes_of
from hub.system.memory import GIB, GpuMemory, three_of_each

CPU_TOKENS = 1024
"""Token budget on a CPU. Longer rows gain nothing: all cores are busy, and attention grows with the square of a packed row."""

MAX_TOKENS = 16384
"""Token budget beyond which a GPU gains nothing either."""

ENOUGH_TOKENS = 4096
"""Tokens that nearly saturate a GPU: beyond them avoid checkpointing rather than take more tokens."""

MAX_MASK_TOKENS = 4096
"""Token budget without variable-length attention: the mask of a packed row grows with its square."""

FREE_MEMORY_FRACTION = 0.97
"""Fraction of the free memory to use. The rest is for fragmentation, and for micro-batches unlike the measured one."""

CAUTIOUS_FRACTION = 0.88
"""Fraction of the free memory to use if bytes are estimated, or if a rank that runs out of memory can't continue alone."""

CHECKPOINTING_COST = 1 / 3
"""Extra work of a checkpointed layer: its forward pass again. (Compiled layers skip a quarter of that. With LoRA the forward
pass is half of the work.)"""

COLLECTIVES_COST = 1700
"""All-gather and reduce-scatter cost of a micro-batch with sharded weights, as tokens of work: 0.13 s with 77 microseconds a
token (8 billion weights on two H200)."""

NUM_LOADS = 32
"""Steps for which `draw_loads` draws samples."""


@dataclass(frozen=True)
class Line:
    """Peak memory of a pass beyond the model and its gradients, in bytes: linear in the number of tokens."""

    per_token: float
    fixed: float = 0.0

    def tokens(self, room: float) -> int:
        """Return how many tokens fit into so many bytes."""
        return int(max(0.0, room - self.fixed) / self.per_token)

    @classmethod
    def through(cls, points: Sequence[tuple[int, float]]) -> "Line":
        """Fit the first and last of the points (tokens, bytes), ascending; the last and zero if those make no such line."""
        (few, less), (many, more) = points[0], points[-1]
        slope = (more - less) / (many - few) if many > few else 0.0
        fixed = more - slope * many
        return cls(slope, fixed) if slope > 0 and fixed >= 0 else cls(more / many)


@dataclass(frozen=True)
class PassMemory:
    """Peak memory of a pass for any number of checkpointed layers."""

    plain: Line
    """Without activation checkpointing."""

    checkpointed: Line
    """With all layers checkpointed."""

    num_layers: int

    def with_checkpointed(self, num_checkpointed: int) -> Line:
        """Interpolate for so many checkpointed layers."""
        fraction = num_checkpointed / max(1, self.num_layers)
        plain, other = self.plain, self.checkpointed
        return Line(
            plain.per_token + (other.per_token - plain.per_token) * fraction,
            plain.fixed + (other.fixed - plain.fixed) * fraction,
        )


def choose_max_tokens(
    memory: PassMemory,
    room: float,
    longest: int,
    most: int = MAX_TOKENS,
    requested: int | None = None,
    loads: Sequence[float] = (),
    collectives_cost: float = 0.0,
) -> tuple[int, int] | None:
    """Choose the token budget and the number of checkpointed layers.

    If a micro-batch has no cost of its own: as few checkpointed layers as leave room for enough tokens. With such a cost: the
    least sum of it and of the time of checkpointing.

    Args:
        memory: of a pass.
        room: bytes that are free for it.
        longest: tokens of the longest sample.
        most: budget beyond which nothing is gained.
        requested: the budget, if the user has set it.
        loads: tokens of a process in a step, for some steps. With them a requested budget need only hold the largest of their
            micro-batches, which are all alike in size.
        collectives_cost: all-gather and reduce-scatter cost of each micro-batch, as tokens of work.

    Returns:
        None if not even the longest sample fits with all layers checkpointed, or not the requested budget.
    """
    min_tokens = max(longest, min(ENOUGH_TOKENS, most))
    if requested:
        min_tokens = max(longest, largest_micro_batch(loads, requested))
    fitting: list[tuple[float, int, int]] = []
    for num_checkpointed in range(memory.num_layers + 1):
        tokens = memory.with_checkpointed(num_checkpointed).tokens(room)
        if tokens >= min_tokens:
            max_tokens = requested or max(longest, min(most, tokens // 512 * 512))
            extra = CHECKPOINTING_COST * num_checkpointed / max(1, memory.num_layers)
            cost = sum(collectives_cost * math.ceil(load / max_tokens) + extra * load for load in loads)
            fitting.append((cost, num_checkpointed, max_tokens))
            if not collectives_cost:
                break
    if fitting:
        _, num_checkpointed, max_tokens = min(fitting)
        return max_tokens, num_checkpointed
    tokens = 0 if requested else memory.checkpointed.tokens(room)
    return (max(longest, tokens // 256 * 256), memory.num_layers) if tokens >= longest else None


def wants_offload(
    choice: tuple[int, int] | None, longest: int, most: int, requested: int | None, loads: Callable[[], Sequence[float]]
) -> bool:
    """Return whether it is worth trying what takes least memory: all layers checkpointed, their inputs in CPU memory.

    It is if nothing fits without it, or so few tokens that a GPU is not busy. The copies run beside the layers.

    Args:
        choice: without it, from `choose_max_tokens`.
        longest: tokens of the longest sample.
        most: budget beyond which nothing is gained.
        requested: the budget, if the user has set it.
        loads: gives the tokens of a process in a step, for some steps.
    """
    if choice is None or requested:
        return choice is None
    enough = max(longest, min(ENOUGH_TOKENS, most))
    return choice[0] < enough and choice[0] < max(loads(), default=math.inf)


def choose_offloaded(line: Line, room: float, longest: int, most: int, requested: int | None = None) -> int | None:
    """Choose the token budget with all layers checkpointed and their inputs in CPU memory: what keeps a GPU busy, or what fits.

    Args:
        line: memory of such a pass.
        room: bytes that are free for it.
        longest: tokens of the longest sample.
        most: budget beyond which nothing is gained.
        requested: the budget, if the user has set it.

    Returns:
        None if not even the longest sample fits, or not the requested budget.
    """
    tokens = line.tokens(room)
    if requested:
        return requested if tokens >= requested else None
    return max(longest, min(most, ENOUGH_TOKENS, tokens // 256 * 256)) if tokens >= longest else None


def limits(variable_length: bool, shards_weights: bool) -> tuple[int, float]:
    """Return the token budget beyond which nothing is gained, and what the collectives of a micro-batch cost as tokens of work.

    Args:
        variable_length: whether the work of attention grows with each sample's own length, not with the row's.
        shards_weights: whether each layer's weights are all-gathered in each micro-batch.
    """
    most = MAX_TOKENS if variable_length else MAX_MASK_TOKENS
    cost = COLLECTIVES_COST if shards_weights else 0
    return most * 2 if cost and most == MAX_TOKENS else most, cost


def pass_memory(checkpointing: str, plain: Line, checkpointed: Line | None, num_layers: int, fits: bool) -> PassMemory:
    """Return the memory of a pass for any number of checkpointed layers, from that of none and of all.

    Args:
        checkpointing: `algo.gradient_checkpointing`.
        plain: without activation checkpointing.
        checkpointed: with all layers checkpointed. None: nothing would be gained by it.
        num_layers: of the model.
        fits: whether `plain` is measured. If not, it is taken to be no less than `checkpointed`.
    """
    if checkpointing == "none" or checkpointed is None:
        return PassMemory(plain, plain, 0)
    if checkpointing == "all":
        plain = checkpointed
    elif not fits:
        plain = max(plain, checkpointed, key=lambda line: line.per_token)
    return PassMemory(plain, checkpointed, num_layers)


def room_left(free: float, trained: Iterable[torch.Tensor], num_shards: int, cautious: bool) -> float:
    """Return the bytes for activations: free memory without the gradients and two moments of the trained weights.

    Args:
        free: bytes of a GPU that are free once the model is on it.
        trained: its trained weights.
        num_shards: processes that shard gradients and moments.
        cautious: leave more memory free.
    """
    fraction = CAUTIOUS_FRACTION if cautious else FREE_MEMORY_FRACTION
    return float((free - three_of_each(trained) / num_shards) * fraction)


def largest_micro_batch(loads: Sequence[float], max_tokens: int) -> int:
    """Return the tokens of these loads' largest micro-batch. A load's micro-batches are balanced: within 2 % on real data."""
    return min(max_tokens, math.ceil(max((1.02 * load / math.ceil(load / max_tokens) for load in loads), default=max_tokens)))


def draw_loads(lengths: Sequence[int], num_samples: float) -> list[float]:
    """Draw the samples of some steps, and return the tokens of a process in each.

    Args:
        lengths: of some samples.
        num_samples: of a process in a step, on average.
    """
    draw = random.Random(0)
    count = max(1, math.ceil(num_samples))
    return [sum(draw.choices(lengths, k=count)) * num_samples / count for _ in range(NUM_LOADS)]


def requested_max_tokens(cfg: AlgoConfig, longest: int) -> int | None:
    """Return `algo.max_tokens_per_gpu`; None for auto.

    Raises:
        ConfigError: it is below the longest sample.
    """
    if cfg.max_tokens_per_gpu == AUTO:
        return None
    max_tokens = int(cfg.max_tokens_per_gpu)
    if max_tokens < longest:
        raise ConfigError(
            f"algo.max_tokens_per_gpu={max_tokens} is below the longest sample ({longest} tokens). "
            f"Type algo.max_tokens_per_gpu={longest}, or data.max_seq_len={max_tokens} to leave longer samples out"
        )
    return max_tokens


def most_tokens(cfg: AlgoConfig, device: torch.device) -> int:
    """Return the tokens that no micro-batch exceeds, but one of a single longer sample, before the budget is known."""
    requested = 0 if cfg.max_tokens_per_gpu == AUTO else int(cfg.max_tokens_per_gpu)
    return max(requested, CPU_TOKENS if device.type == "cpu" else 2 * MAX_TOKENS)


def room_for_activations(model: torch.nn.Module, memory: GpuMemory, num_shards: int, repeatable: bool, cautious: bool) -> float:
    """Return the bytes for activations: free memory without the gradients and two moments of the trained weights.

    Args:
        model: placed, without gradients.
        memory: of its GPU.
        num_shards: processes that shard gradients and moments.
        repeatable: the same in every run on such a GPU, as if the GPU were otherwise empty.
        cautious: leave more memory free.
    """
    memory.release()
    free = memory.free()
    if repeatable:
        tensors = (*model.parameters(), *model.buffers())
        free = memory.allowed() - sum(bytes_of(tensor) for tensor in tensors)
    return room_left(free, [p for p in model.parameters() if p.requires_grad], num_shards, cautious)


def describe(line: Line, room: float) -> str:
    """Return the reason for the token budget, for plan.json."""
    return f"{room / GIB:.1f} GB are free for activations, a token takes {line.per_token / 2**20:.2f} MB"


def bytes_per_token(config: PretrainedConfig, checkpointed: bool) -> float:
    """Estimate the bytes of activations for one token from the shape of a text model, if nothing can be measured."""
    hidden, layers = config.hidden_size, config.num_hidden_layers
    intermediate = getattr(config, "intermediate_size", None) or 4 * hidden
    one_layer = 2 * (16 * hidden + 6 * intermediate)
    saved = layers * 4 * hidden + one_layer if checkpointed else layers * one_layer
    return float(saved + 10 * config.vocab_size)
