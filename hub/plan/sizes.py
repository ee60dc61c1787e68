"""Sizes of tensors as functions of the number of tokens, and what a pass allocates and frees in order.

A pass is run once over fake tensors, which have shapes and no data, with four times a prime number of tokens. A tensor whose
bytes that prime divides grows with the tokens; if its square divides them, with their square. So one pass gives the memory of
any number of tokens, also where the MLP takes them in tiles.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from hub.train.kernels.tiles import NUM_TILES

PRIME = 1021
TOKENS = NUM_TILES * PRIME
"""Tokens of a traced pass. Models have no size with this prime factor, and a tile of `PRIME` tokens is recognized too."""

ROUNDING = 512
"""Torch's allocator rounds each tensor up to a multiple of so many bytes."""


@dataclass(frozen=True)
class Size:
    """Bytes of a tensor, or of several."""

    fixed: float = 0.0
    per_token: float = 0.0
    per_pair: float = 0.0
    """For each pair of tokens, as of a mask."""

    @classmethod
    def of(cls, num_bytes: int) -> "Size":
        """The size of a tensor that takes so many bytes at `TOKENS` tokens."""
        if num_bytes and num_bytes % PRIME**2 == 0:
            return cls(per_pair=num_bytes / TOKENS**2)
        if num_bytes and num_bytes % PRIME == 0:
            return cls(per_token=num_bytes / TOKENS)
        return cls(fixed=float(-(-num_bytes // ROUNDING) * ROUNDING))

    def at(self, tokens: int) -> float:
        """Bytes at so many tokens."""
        return self.fixed + tokens * (self.per_token + tokens * self.per_pair)

    def __add__(self, other: "Size") -> "Size":
        return Size(self.fixed + other.fixed, self.per_token + other.per_token, self.per_pair + other.per_pair)

    def __neg__(self) -> "Size":
        return Size(-self.fixed, -self.per_token, -self.per_pair)

    def __sub__(self, other: "Size") -> "Size":
        return self + -other


def total(sizes: Iterable[Size]) -> Size:
    """The sum of sizes."""
    summed = Size()
    for size in sizes:
        summed = summed + size
    return summed


@dataclass
class Events:
    """What a pass allocates (positive) and frees (negative), in order."""

    changes: list[Size] = field(default_factory=list)

    @property
    def kept(self) -> Size:
        """What is left at the end, beyond what was there before."""
        return total(self.changes)

    def peak(self, tokens: int) -> float:
        """The most that it holds beyond what was there before, in bytes at so many tokens."""
        live = most = 0.0
        for change in self.changes:
            live += change.at(tokens)
            most = max(most, live)
        return most


@dataclass(frozen=True)
class LayerMemory:
    """What a decoder layer takes in a forward and a backward pass."""

    forward: Events
    """Ends with what is saved for the backward pass and the layer's output; its input, which others hold, does not count."""

    backward: Events
    """Begins when all of that is there. Gradients of weights count as allocated within."""

    output: Size
    """The layer's output."""

    @property
    def saved(self) -> Size:
        """What the layer saves for its backward pass, beyond its input and its output."""
        return self.forward.kept - self.output
