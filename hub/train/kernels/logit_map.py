"""What a model makes of its output layer's result: a scale, a soft cap, both or nothing. Measured on the model itself.

Some families do not return the product of hidden states and head as it is. They scale it (Cohere, Granite, Falcon-H1), bound it
softly (Gemma 2) or both. The fused head makes no logits that the model could still change, so it has to do the same. Names of
options differ between families. So the output layer returns known numbers in place of its own, and what the model makes of
these says what it does.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from hub.models.patches import Edits, ModelPatches, Patch

SMALLEST, LARGEST = -20, 20
"""Exponents of 2 of the numbers that are tried. A soft cap leaves the smallest as they are, and the largest become the cap."""

TOLERANCE = 1e-5
"""Largest relative difference that passes as rounding in float32."""


@dataclass(frozen=True)
class LogitMap:
    """The function of each logit z: `cap * tanh(scale * z / cap)`, or `scale * z` without a cap."""

    scale: float = 1.0
    cap: float | None = None

    @property
    def is_identity(self) -> bool:
        """Whether logits stay as they are."""
        return self.scale == 1.0 and self.cap is None

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Apply it to logits of any shape. In float32, or in float64 if they are."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return logits * self.scale if self.cap is None else torch.tanh(logits * (self.scale / self.cap)) * self.cap

    def __str__(self) -> str:
        words = [] if self.scale == 1.0 else [f"times {self.scale:.6g}"]
        words += [] if self.cap is None else [f"softly capped at {self.cap:.6g}"]
        return ", ".join(words) or "as they are"


AS_THEY_ARE = LogitMap()


class _Probe(Patch):
    """The output layer returns known numbers, whatever it is given."""

    def __init__(self, head: torch.nn.Linear) -> None:
        self._head = head
        exponents = torch.arange(SMALLEST, LARGEST + 1, dtype=torch.float32)
        self.numbers = torch.cat([2.0**exponents, -(2.0**exponents)]).to(head.weight.device)
        self.given: torch.Tensor | None = None
        """What it returned, with the head's own shape."""

    def apply(self, edits: Edits) -> None:
        edits.assign(self._head, "forward", self._forward)

    def _forward(self, hidden: torch.Tensor) -> torch.Tensor:
        shape = (*hidden.shape[:-1], self._head.out_features)
        places = torch.arange(math.prod(shape), device=hidden.device) % len(self.numbers)
        self.given = self.numbers.to(hidden.device)[places].view(shape)
        return self.given


@torch.no_grad()
def measured_map(patches: ModelPatches, head: torch.nn.Linear, run: Callable[[], torch.Tensor]) -> LogitMap | None:
    """Measure what a model makes of its output layer's result.

    Args:
        patches: the owner of the model's patches.
        head: the model's output layer.
        run: runs the model on a few tokens, and returns its logits.

    Returns:
        None: something else than a scale and a soft cap, or not of each logit alone.
    """
    probe = _Probe(head)
    with patches.temporarily(probe):
        found = run()
    if probe.given is None or found.shape != probe.given.shape:
        return None
    given, found = probe.given.double().flatten(), found.double().flatten()
    first = found[: len(probe.numbers)].tolist()
    scale = first[0] / 2.0**SMALLEST
    if not math.isfinite(scale) or scale == 0:
        return None
    # Of the caps that are in use none is near the largest number, so the model has reached it there.
    fits = [LogitMap(), LogitMap(scale), LogitMap(scale, abs(first[LARGEST - SMALLEST]))]
    return next((fit for fit in fits if torch.allclose(fit(given), found, rtol=TOLERANCE, atol=0.0)), None)
