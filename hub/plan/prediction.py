"""The prediction of a run's memory: its parts, and the layout that was chosen for it. Needs no torch."""

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Part:
    """Something that takes memory of one GPU at the peak."""

    name: str
    num_bytes: int
    because: str
    """Where the number comes from, in a few words."""

    in_torch: bool = True
    """Whether torch's own count of allocated memory holds it (`peak_memory_gb` of a result). False: the driver's context."""


@dataclass(frozen=True)
class MemoryPlan:
    """What one GPU of a run holds at the peak."""

    parts: tuple[Part, ...]
    """All that lives on one GPU at the peak: their sum is the peak."""

    max_tokens: int
    """Tokens of a micro-batch on one GPU."""

    num_layers: int
    num_checkpointed: int
    """Layers with activation checkpointing."""

    offload: bool
    """Whether inputs of checkpointed layers go to CPU memory."""

    tiles: bool
    """Whether MLPs take their tokens tile by tile."""

    strategy: str
    """ddp, fsdp, zero1 ... split."""

    world: int
    """GPUs."""

    compiled: bool
    fits: bool
    missing_bytes: int
    """Bytes by which it does not fit; 0 if it does."""

    room_bytes: int
    """Bytes for activations, as a run counts them."""

    memory_bytes: int
    """Of the GPU, or of `launch.gpu_memory_gb`."""

    plain: tuple[float, float]
    """Bytes for each token, and fixed ones, of a pass without activation checkpointing."""

    checkpointed: tuple[float, float]
    """Bytes for each token, and fixed ones, of a pass with all layers checkpointed."""

    num_parameters: int = 0
    num_trained: int = 0
    longest_that_fits: int = 0
    """Tokens of the longest sample that would fit."""

    tokens_at_peak: int = 0
    """Tokens of the largest micro-batch of a step."""

    per_token: float = 0.0
    """Bytes of activations for each further token, with the layers that are checkpointed."""

    lines: tuple[str, ...] = ()
    """What the reader should know: what could not be counted, what a backend said."""

    @property
    def peak_bytes(self) -> int:
        """Everything on one GPU at the peak."""
        return sum(part.num_bytes for part in self.parts)

    @property
    def torch_bytes(self) -> int:
        """What torch counts of it: comparable with `peak_memory_gb` of a result."""
        return sum(part.num_bytes for part in self.parts if part.in_torch)

    @property
    def weight_bytes(self) -> int:
        """The weights on one GPU, with their scales if they are quantized."""
        return sum(part.num_bytes for part in self.parts if "weights" in part.name)

    def corrected(self, num_bytes: int, because: str) -> "MemoryPlan":
        """This plan with so many bytes more at the peak, or fewer, as runs have measured it."""
        parts = (*self.parts, Part("measured beyond that", num_bytes, because)) if num_bytes else self.parts
        missing = max(0, self.peak_bytes + num_bytes - self.memory_bytes)
        fits = not missing and (self.fits or self.missing_bytes > 0)
        return replace(self, parts=parts, missing_bytes=missing, fits=fits)

    def as_json(self) -> dict[str, Any]:
        """Values for JSON, in bytes."""
        return {
            "peak_bytes": self.peak_bytes,
            "torch_peak_bytes": self.torch_bytes,
            "parts": [vars(part) for part in self.parts],
            **{name: value for name, value in vars(self).items() if name != "parts"},
        }
