"""How many tokens a micro-batch may have, and which layers recompute their activations, when the user leaves it to the hub.

On a GPU it is measured: passes forward and backward with all layers kept, and with all recomputed, on a few of the run's own
samples and on half of them. Memory grows with the number of tokens in a straight line, so these say what any bound and any
number of layers would take.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hub.config.option import AUTO
from hub.config.schema import AlgoConfig
from hub.errors import ConfigError
from hub.system.memory import GIB, allowed_memory, three_of_each

CPU_TOKENS = 1024
"""A CPU gains nothing from longer rows: its cores are busy already, and attention over a packed row grows with its square."""

MOST_TOKENS = 16384
"""Beyond this a GPU is busy as well."""

ENOUGH_TOKENS = 4096
"""A GPU is nearly busy with so many: rather keep activations than take more tokens."""

MASK_TOKENS = 4096
"""Without variable-length attention the mask of a packed row grows with its square."""

SHARE_OF_FREE_MEMORY = 0.97
"""The rest is for fragments, and for steps whose micro-batches differ from the measured one."""

CAUTIOUS_SHARE = 0.88
"""Of it where the bytes are estimated, or where a rank that runs out of memory can't go on by itself."""

RECOMPUTING = 1 / 3
"""Of a layer's work: its forward pass again. (Compiled layers leave a quarter of that out; with LoRA the pass is half of the
work.)"""

TOLL_OF_SHARES = 1700
"""What a micro-batch costs where its weights have to be brought together and its gradients shared out, as tokens of work:
0.13 s where a token takes 77 microseconds (8 billion weights on two H200)."""

NUM_LOADS = 32
"""Steps whose loads are drawn."""


@dataclass(frozen=True)
class Line:
    """Bytes at the peak of a pass over what the model and its gradients take: they grow with the tokens in a straight line."""

    per_token: float
    fixed: float = 0.0

    def tokens(self, room: float) -> int:
        """How many fit into so many bytes."""
        return int(max(0.0, room - self.fixed) / self.per_token)

    @classmethod
    def through(cls, points: Sequence[tuple[int, float]]) -> "Line":
        """Through the first and the last of the points (tokens, bytes), ascending; through zero where that says nothing."""
        (few, less), (many, more) = points[0], points[-1]
        slope = (more - less) / (many - few) if many > few else 0.0
        fixed = more - slope * many
        return cls(slope, fixed) if slope > 0 and fixed >= 0 else cls(more / many)


@dataclass(frozen=True)
class Need:
    """Bytes of a pass."""

    kept: Line
    """With all activations kept."""

    recomputed: Line
    """With those of all layers recomputed."""

    num_layers: int

    def of(self, num_recomputed: int) -> Line:
        """With those of the first so many layers recomputed."""
        share = num_recomputed / max(1, self.num_layers)
        kept, other = self.kept, self.recomputed
        return Line(
            kept.per_token + (other.per_token - kept.per_token) * share, kept.fixed + (other.fixed - kept.fixed) * share
        )


def choose_bound(
    need: Need,
    room: float,
    longest: int,
    most: int = MOST_TOKENS,
    asked: int | None = None,
    loads: Sequence[float] = (),
    toll: float = 0.0,
) -> tuple[int, int] | None:
    """The bound of tokens and the number of layers to recompute.

    Where a micro-batch costs nothing of itself: as few layers as leave room for enough tokens. Where it has a toll, what is
    least of the tolls and the time of recomputing together.

    Args:
        need: bytes of a pass.
        room: bytes that are free for it.
        longest: tokens of the longest sample.
        most: more tokens than this gain nothing.
        asked: the bound, where it is not to be chosen.
        loads: tokens that a process has in a step, of some steps. With them it is enough that a bound that was asked for holds
            the fullest of their micro-batches, which are all alike in size.
        toll: what each micro-batch costs of itself, as so many tokens of work.

    Returns:
        None when not even the longest sample fits with all layers recomputed, or not what was asked for.
    """
    least = max(longest, min(ENOUGH_TOKENS, most))
    if asked:
        least = max(longest, fullest(loads, asked))
    fitting: list[tuple[float, int, int]] = []
    for num_recomputed in range(need.num_layers + 1):
        tokens = need.of(num_recomputed).tokens(room)
        if tokens >= least:
            bound = asked or max(longest, min(most, tokens // 512 * 512))
            extra = RECOMPUTING * num_recomputed / max(1, need.num_layers)
            cost = sum(toll * math.ceil(load / bound) + extra * load for load in loads)
            fitting.append((cost, num_recomputed, bound))
            if not toll:
                break
    if fitting:
        _, num_recomputed, bound = min(fitting)
        return bound, num_recomputed
    tokens = 0 if asked else need.recomputed.tokens(room)
    return (max(longest, tokens // 256 * 256), need.num_layers) if tokens >= longest else None


def fullest(loads: Sequence[float], bound: int) -> int:
    """Tokens of the largest micro-batch of these loads. A load's micro-batches are levelled: real data's are within 2 %."""
    return min(bound, math.ceil(max((1.02 * load / math.ceil(load / bound) for load in loads), default=bound)))


def loads_of(lengths: Sequence[int], num_samples: float) -> list[float]:
    """Tokens that a process has in a step, of some steps drawn by chance.

    Args:
        lengths: of some samples.
        num_samples: of a process in a step, on average.
    """
    draw = random.Random(0)
    count = max(1, math.ceil(num_samples))
    return [sum(draw.choices(lengths, k=count)) * num_samples / count for _ in range(NUM_LOADS)]


def asked_bound(cfg: AlgoConfig, longest: int) -> int | None:
    """`algo.max_tokens_per_gpu`; None for auto.

    Raises:
        ConfigError: it is below the longest sample.
    """
    if cfg.max_tokens_per_gpu == AUTO:
        return None
    bound = int(cfg.max_tokens_per_gpu)
    if bound < longest:
        raise ConfigError(
            f"algo.max_tokens_per_gpu={bound} is below the longest sample ({longest} tokens). "
            f"Type algo.max_tokens_per_gpu={longest}, or data.max_seq_len={bound} to leave longer samples out"
        )
    return bound


def room_for_activations(model: torch.nn.Module, device: torch.device, shares: int, repeatable: bool, cautious: bool) -> float:
    """Bytes for activations: what is free less gradients and two moments of what trains.

    Args:
        model: placed, without gradients.
        device: a GPU.
        shares: processes among which gradients and moments are shared out.
        repeatable: the same in every run on such a GPU: as if nothing else were on it.
        cautious: leave more of it free.
    """
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info(device)[0]
    total = allowed_memory(device)
    free = min(free, total - torch.cuda.memory_reserved(device))
    if repeatable:
        held = (*model.parameters(), *model.buffers())
        free = total - sum(tensor.numel() * tensor.element_size() for tensor in held)
    trained = [p for p in model.parameters() if p.requires_grad]
    share = CAUTIOUS_SHARE if cautious else SHARE_OF_FREE_MEMORY
    return float((free - three_of_each(trained) / shares) * share)


def measured(passes: Sequence[Callable[[], int]], parameters: Sequence[torch.nn.Parameter], device: torch.device) -> Line:
    """Bytes at the peak of a pass forward and backward, while gradients are there already.

    Args:
        passes: each does one and returns its number of tokens; ascending.
        parameters: whose gradients are taken away afterwards.
        device: a GPU.
    """
    points: list[tuple[int, float]] = []
    try:
        with torch.random.fork_rng([device]):
            passes[-1]()  # compiles, makes the gradients, and lets libraries take their buffers
            for run_pass in passes:
                torch.cuda.reset_peak_memory_stats(device)
                before = torch.cuda.memory_allocated(device)
                tokens = run_pass()
                points.append((tokens, float(torch.cuda.max_memory_allocated(device) - before)))
        return Line.through(points)
    finally:
        for parameter in parameters:
            parameter.grad = None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def in_words(need: Need, room: float, num_recomputed: int) -> str:
    """Why this bound, for plan.json."""
    return f"{room / GIB:.1f} GB are free for activations, a token takes {need.of(num_recomputed).per_token / 2**20:.2f} MB"


def hidden_bytes(config: Any, checkpointed: bool) -> float:
    """Bytes of activations that one token keeps, estimated from the model's shape where nothing can be measured."""
    config = config.get_text_config()
    hidden, layers = config.hidden_size, config.num_hidden_layers
    intermediate = getattr(config, "intermediate_size", None) or 4 * hidden
    one_layer = 2 * (16 * hidden + 6 * intermediate)
    kept = layers * 4 * hidden + one_layer if checkpointed else layers * one_layer
    return float(kept + 10 * config.vocab_size)
