"""Covariances of the inputs of linear layers, X^T X: along which directions the protected data uses them, and how much.

A change Delta (M x p) of a layer's weight hardly changes its outputs on such inputs if Delta Q = 0, where the columns of
Q (p x k) are the directions of most energy (gradient projection memory, arXiv 2103.09762; Adam-NSCL, 2103.07113; LoRA-Null,
2503.02659).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.distributed as dist
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from hub.data.samples.sample import Sample
from hub.protection.passes import batches, in_smaller_passes, on_device
from hub.train.batch.collate import pad
from hub.train.setup.setup import Setup

BATCH_TOKENS = {"cpu": 1024, "cuda": 16384}
"""Tokens of one forward pass, including padding."""

NUM_ITERATIONS, NUM_EXTRA = 4, 32
"""Of the subspace iteration: products with the covariance, and columns beyond the directions that are wanted."""


class Sums(ABC):
    """Sums over the tokens of passes of a model, one for each of some modules. Subclasses say of what."""

    def __init__(self) -> None:
        self.totals: dict[str, torch.Tensor] = {}
        """Module's name -> sum."""

    @abstractmethod
    def watch(self, model: PreTrainedModel, mask: Sequence[torch.Tensor]) -> list[RemovableHandle]:
        """Add hooks that add to `totals`.

        Args:
            model: of the passes.
            mask: a list whose only element is replaced for each batch: which of its tokens count, bool (batch, length).

        Returns:
            The handles that remove the hooks.
        """

    def add_(self, name: str, added: torch.Tensor) -> None:
        """Add to a total, not in place: passes that begin anew need the earlier tensor."""
        self.totals[name] = self.totals[name] + added if name in self.totals else added


class InputSums(Sums):
    """Covariances X^T X (p, p), float32, not centered, of linear layers' inputs. Layers that get the same tensor share one."""

    def __init__(self, names: Iterable[str], aliases: dict[str, str] | None = None) -> None:
        """Begin with no data.

        Args:
            names: the layers.
            aliases: layer -> the first layer that gets the same input, maybe itself. The passes add those that are missing.
        """
        super().__init__()
        self.names = list(names)
        self.aliases: dict[str, str] = {} if aliases is None else aliases

    def watch(self, model: PreTrainedModel, mask: Sequence[torch.Tensor]) -> list[RemovableHandle]:
        recent: list[tuple[str, torch.Tensor]] = []

        def watch(name: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
            def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
                x = inputs[0]
                if name not in self.aliases:
                    same = next((earlier for earlier, seen in recent if seen is x), name)
                    self.aliases[name] = same
                    recent[:] = [*recent[-3:], (same, x)]
                if self.aliases[name] != name:
                    return
                # Experts' layers may get only some tokens, already without padding.
                rows = x[mask[0]] if x.shape[:2] == mask[0].shape else x.flatten(0, -2)
                with torch.autocast(x.device.type, enabled=False):
                    rows = rows.float()
                    self.add_(name, rows.mT @ rows)

            return hook

        return [model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in self.names]


def add_up(setup: Setup, model: PreTrainedModel, samples: Sequence[Sample], sums: Sequence[Sums]) -> None:
    """Run samples through a model, divided over the ranks, and add to sums. All ranks must call it.

    Args:
        setup: of the run.
        model: may be sharded.
        samples: the same on all ranks.
        sums: what is added up.
    """
    session = setup.session
    if not samples:
        return
    mask: list[torch.Tensor] = []
    handles = [handle for one in sums for handle in one.watch(model, mask)]
    was_training = model.training
    model.eval()
    before = [dict(one.totals) for one in sums]

    def run(max_tokens: int) -> bool:
        for one, totals in zip(sums, before, strict=True):
            one.totals = dict(totals)
        with torch.no_grad(), session.autocast(), on_device(setup, model):
            for chosen in batches(samples, max_tokens, session.group.rank, session.group.world):
                batch = pad(chosen or [samples[0]], 0).to(session.device)
                assert batch.attention_mask is not None
                mask[:] = [batch.attention_mask.bool() & bool(chosen)]
                inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
                model(**inputs, position_ids=batch.position_ids, use_cache=False)
        return True

    try:
        in_smaller_passes(setup, model, run, BATCH_TOKENS[session.device.type], max(map(len, samples)))
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    if session.group.world > 1:
        for one, totals in zip(sums, before, strict=True):
            for name, total in one.totals.items():
                added = total - totals[name] if name in totals else total
                dist.all_reduce(added)
                one.totals[name] = totals[name] + added if name in totals else added


def largest_directions(covariance: torch.Tensor, rank: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the directions of most energy of a covariance, by subspace iteration with random columns (arXiv 0909.4061).

    Args:
        covariance: (p, p), positive semidefinite.
        rank: how many, at most p.
        seed: of the random columns.

    Returns:
        Orthonormal columns (p, rank), and their energies (rank,), ascending.
    """
    size = len(covariance)
    random = torch.Generator(covariance.device).manual_seed(seed)
    columns = min(size, rank + NUM_EXTRA)
    span = torch.randn(size, columns, generator=random, dtype=covariance.dtype, device=covariance.device)
    for _ in range(NUM_ITERATIONS):
        span = torch.linalg.qr(covariance @ span)[0]
    values, inner = torch.linalg.eigh(span.mT @ covariance @ span)
    return span @ inner[:, -rank:], values[-rank:].clamp(min=0)
