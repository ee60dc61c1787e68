"""The output layer gives log-probabilities in place of logits, which are made of a few positions at a time only."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from hub.models.patches import Edits, Patch
from hub.models.structure import base_of

CHUNK_BYTES = 2**28
"""Logits at a time, in float32."""


def log_probabilities(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the log-probability of each target, in nats, and whether it is the most likely token: (n, 2) float32.

    Args:
        logits: (n, vocabulary).
        targets: (n,)
    """
    logits = logits.float()
    chosen = logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)
    return torch.stack([chosen, (logits.argmax(-1) == targets).float()], dim=-1)


class ScoringHead(Patch):
    """Within `scoring` the model's `logits` are what `log_probabilities` returns.

    Args:
        model: a transformers model.
        vocab_size: of the model.
    """

    def __init__(self, model: torch.nn.Module, vocab_size: int) -> None:
        self._head = base_of(model).get_output_embeddings()
        self._rows = max(1, CHUNK_BYTES // (4 * vocab_size))
        self._plain: Callable[[torch.Tensor], torch.Tensor] = self._head.forward
        self._targets: torch.Tensor | None = None
        self._probe: torch.Tensor | None = None

    def apply(self, edits: Edits) -> None:
        self._plain = self._head.forward
        edits.assign(self._head, "forward", self._forward)

    def _forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self._probe is not None:
            return self._probe
        if self._targets is None:
            return self._plain(hidden)
        parts = zip(hidden.flatten(0, -2).split(self._rows), self._targets.split(self._rows), strict=True)
        return torch.cat([log_probabilities(self._plain(part), targets) for part, targets in parts])

    @contextmanager
    def scoring(self, targets: torch.Tensor) -> Iterator[None]:
        """Within it the layer scores these targets, one for each position that it is given."""
        self._targets = targets
        try:
            yield
        finally:
            self._targets = None

    def is_last(self, run: Callable[[], torch.Tensor]) -> bool:
        """Whether nothing follows the layer: what it returns must come back as it is. Some models scale or bound logits.

        Args:
            run: runs the model on three positions, and returns its logits.
        """
        self._probe = torch.tensor([[-40.0, 0.5], [90.0, 7.0], [3.0, -1.0]], device=next(self._head.parameters()).device)
        try:
            return bool(torch.equal(run().float().reshape(-1, 2), self._probe))
        except (RuntimeError, IndexError, ValueError):
            return False
        finally:
            self._probe = None
