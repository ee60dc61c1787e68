"""Samples to tensors: one packed row without padding, or padded rows for models that can't be packed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from hub.data.prepare import Sample


@dataclass(frozen=True)
class MicroBatch:
    """The tensors of one forward pass: T tokens in one row when packed, else R rows of L tokens."""

    input_ids: torch.Tensor
    """(1, T) or (R, L), int64."""

    position_ids: torch.Tensor
    """Same shape: the position of each token in its own sample. Padding has that of the last token."""

    attention_mask: torch.Tensor | None
    """None when packed; (R, L), 1 for tokens and 0 for padding."""

    loss_positions: torch.Tensor
    """(n,) indices into the flattened `input_ids`: the positions that predict a loss token."""

    targets: torch.Tensor
    """(n,) the loss token that each of them predicts."""

    num_tokens: int
    """Number of tokens without padding."""

    starts: torch.Tensor | None = None
    """Only when packed: (n + 1,) int32, the start of each of the n samples, and the end of the last."""

    longest: int = 0
    """Only when packed: number of tokens of the longest sample."""

    weights: torch.Tensor | None = None
    """(n,) float32: the weight of each loss token. None: all are 1."""

    samples: tuple[int, ...] = ()
    """Indices of its samples in the step, in their order here. Empty for a weightless micro-batch."""

    @property
    def packed(self) -> bool:
        return self.attention_mask is None

    def to(self, device: torch.device) -> "MicroBatch":
        def move(tensor: torch.Tensor) -> torch.Tensor:
            # From memory that is not pinned, a copy would wait until the GPU has finished all its earlier work.
            return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)

        return replace(
            self,
            input_ids=move(self.input_ids),
            position_ids=move(self.position_ids),
            attention_mask=None if self.attention_mask is None else move(self.attention_mask),
            loss_positions=move(self.loss_positions),
            targets=move(self.targets),
            starts=None if self.starts is None else move(self.starts),
            weights=None if self.weights is None else move(self.weights),
        )


def num_loss_tokens(sample: Sample) -> int:
    """Count the loss tokens of a sample. Its first token has no prediction and never counts."""
    return int(sample.loss_mask[1:].sum())


def pack(samples: Sequence[Sample]) -> MicroBatch:
    """Pack samples into one row, one after the other. Positions start at 0 in each."""
    ids = np.concatenate([sample.input_ids for sample in samples]).astype(np.int64)
    positions = np.concatenate([np.arange(len(sample)) for sample in samples])
    starts = np.cumsum([0, *(len(sample) for sample in samples)])
    places = np.concatenate(
        [start + np.flatnonzero(sample.loss_mask[1:]) for start, sample in zip(starts, samples, strict=False)]
    )
    return MicroBatch(
        input_ids=torch.from_numpy(ids)[None],
        position_ids=torch.from_numpy(positions)[None],
        attention_mask=None,
        loss_positions=torch.from_numpy(places),
        targets=torch.from_numpy(ids[places + 1]),
        num_tokens=len(ids),
        starts=torch.from_numpy(starts.astype(np.int32)),
        longest=max(len(sample) for sample in samples),
    )


def pad(samples: Sequence[Sample], pad_id: int) -> MicroBatch:
    """Make a row of each sample, padded on the right. Padding has its sample's last position: none is beyond its length."""
    longest = max(len(sample) for sample in samples)
    ids = np.full((len(samples), longest), pad_id, dtype=np.int64)
    mask = np.zeros((len(samples), longest), dtype=np.int64)
    places = []
    for row, sample in enumerate(samples):
        ids[row, : len(sample)] = sample.input_ids
        mask[row, : len(sample)] = 1
        places.append(row * longest + np.flatnonzero(sample.loss_mask[1:]))
    flat = np.concatenate(places)
    return MicroBatch(
        input_ids=torch.from_numpy(ids),
        position_ids=torch.minimum(torch.arange(longest), torch.from_numpy(mask).sum(1, keepdim=True) - 1),
        attention_mask=torch.from_numpy(mask),
        loss_positions=torch.from_numpy(flat),
        targets=torch.from_numpy(ids.reshape(-1)[flat + 1]),
        num_tokens=int(mask.sum()),
    )


def weightless(sample: Sample) -> Sample:
    """Make a short sample without loss, for a rank without samples in this micro-batch: it must join the collectives."""
    return Sample(sample.input_ids[:2], np.zeros(len(sample.input_ids[:2]), dtype=bool), sample.where)
