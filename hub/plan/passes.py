"""The memory of a forward and a backward pass over the whole model, at any number of tokens."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hub.models.patches import ModelPatches
from hub.plan.build import tensors_without_data
from hub.plan.layers import LayerMemories, StandIns
from hub.plan.live import Live
from hub.plan.scratch import scratch_of_call
from hub.plan.sharding import Fsdp, Shares
from hub.plan.sizes import TOKENS
from hub.train.batch.collate import MicroBatch

Loss = Callable[[torch.nn.Module, MicroBatch], torch.Tensor]


@dataclass(frozen=True)
class PassBytes:
    """Bytes of a pass beyond the model, and beyond its gradients if they were there before."""

    peak: int
    after_forward: int
    """What is there between the two passes."""

    layers: int
    """What the layers keep of it, their inputs counted."""


class Passes:
    """Runs passes of a model without data.

    Args:
        model: with tensors of `mode`.
        mode: of its tensors.
        patches: the owner of the model's patches.
        layers: its decoder layers.
        loss: of a micro-batch.
        packed: whether samples are packed into a row.
        is_compiled: whether the layers are compiled.
        autocast: makes the context of the arithmetic.
        gathered_dtype: of the weights as FSDP2 gathers them, if it casts them. None: they are in their own.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        mode: FakeTensorMode,
        patches: ModelPatches,
        layers: list[torch.nn.Module],
        loss: Loss,
        packed: bool,
        is_compiled: bool,
        autocast: Callable[[], AbstractContextManager[object]],
        gathered_dtype: torch.dtype | None = None,
    ) -> None:
        self._gathered_dtype = gathered_dtype
        self._model, self._mode, self._patches, self._layers = model, mode, patches, layers
        self._loss, self._packed, self._is_compiled, self.autocast = loss, packed, is_compiled, autocast
        self._parameters = list(model.parameters())
        self._memories: LayerMemories | None = None

    def memories(self) -> LayerMemories:
        """What the layers take. Found out once."""
        if self._memories is None:
            memories = LayerMemories(self._layers, self._is_compiled, self.autocast)
            with tensors_without_data(self._mode), self._gathered(), self._patches.temporarily(memories):
                self._forward(TOKENS)
            self._memories = memories
        return self._memories

    def run(
        self,
        tokens: int,
        num_checkpointed: int,
        with_gradients: bool = True,
        offloads: bool = False,
        tiled_from: int | None = None,
        shares: Shares | None = None,
        loss_share: float = 1.0,
    ) -> PassBytes:
        """Run a forward and a backward pass.

        Args:
            tokens: of the row.
            num_checkpointed: layers with activation checkpointing.
            with_gradients: whether the gradients of the weights are there before, as in every micro-batch but a step's first.
            offloads: whether checkpointed layers save their input in CPU memory.
            tiled_from: tokens from which on the MLPs of checkpointed, compiled layers are tiled. None: they never are.
            shares: what FSDP2 takes in a pass. None: the weights are not sharded by it.
            loss_share: share of the tokens that have a loss, and so logits.
        """
        memories = self.memories()
        of_layers = {id(parameter) for weights in memories.trained for parameter in weights}
        others = [p for p in self._parameters if p.requires_grad and id(p) not in of_layers]
        live = Live(scratch_of_call, rounds=True)
        fsdp = Fsdp(shares, with_gradients) if shares is not None else None
        tiles = tiled_from is not None and tokens >= tiled_from
        stand_ins = StandIns(memories, num_checkpointed, offloads, tiles, with_gradients, fsdp)
        with tensors_without_data(self._mode), self._gathered(), self._patches.temporarily(stand_ins):
            live.known([*self._parameters, *self._model.buffers()])
            # FSDP2 gives a weight a new gradient in each pass, and adds it to that of its shard.
            if with_gradients and not (fsdp is not None and fsdp.shards_gradients):
                for parameter in others:
                    parameter.grad = torch.empty_like(parameter)
                live.known(parameter.grad for parameter in others if parameter.grad is not None)
            with live:
                after = self._pass(tokens, loss_share, others, live, fsdp)
            for parameter in others:
                parameter.grad = None
        kept = 0.0
        for number, layer in enumerate(self._layers):
            kind = memories.of(layer)
            memory = kind.checkpointed if number < num_checkpointed else kind.plain
            kept += memory.saved.at(tokens)
            kept += 0 if offloads and number < num_checkpointed else memory.output.at(tokens)
        return PassBytes(live.most_bytes, after, int(kept))

    def _pass(self, tokens: int, loss_share: float, others: list[torch.nn.Parameter], live: Live, fsdp: Fsdp | None) -> int:
        """A forward and a backward pass. Returns what is there between them.

        Args:
            tokens: of the row.
            loss_share: share of them that have a loss.
            others: weights outside the layers.
            live: counts.
            fsdp: takes what FSDP2 takes.
        """
        if fsdp is not None:
            fsdp.begin_forward()
        loss = self._forward(tokens, loss_share)
        if fsdp is not None:
            fsdp.end_forward()
        after = live.num_bytes
        if fsdp is not None:
            fsdp.begin_backward()
        loss.backward()
        if fsdp is not None:
            gradients = [p.grad for p in others if p.grad is not None] if fsdp.shards_gradients else []
            for parameter in others if fsdp.shards_gradients else ():
                parameter.grad = None
            fsdp.end_backward(gradients)
        return after

    @contextmanager
    def _gathered(self) -> Iterator[None]:
        """Within it the weights are as FSDP2 gathers them."""
        if self._gathered_dtype is None:
            yield
            return
        before = [(p, p.data) for p in self._model.parameters() if p.is_floating_point() and p.dtype != self._gathered_dtype]
        for parameter, data in before:
            parameter.data = data.to(self._gathered_dtype)
        try:
            yield
        finally:
            for parameter, data in before:
                parameter.data = data

    def _forward(self, tokens: int, loss_share: float = 1.0) -> torch.Tensor:
        with self.autocast():
            return self._loss(self._model, row(tokens, self._packed, max(1, math.ceil(loss_share * tokens))))


def row(tokens: int, packed: bool, num_loss: int) -> MicroBatch:
    """A micro-batch of one sample, of which so many tokens have a loss. To be called within a FakeTensorMode."""
    ids = torch.zeros((1, tokens), dtype=torch.int64)
    return MicroBatch(
        input_ids=ids,
        position_ids=torch.arange(tokens)[None],
        attention_mask=None if packed else torch.ones_like(ids),
        loss_positions=torch.arange(num_loss),
        targets=torch.zeros(num_loss, dtype=torch.int64),
        num_tokens=tokens,
        starts=torch.tensor([0, tokens], dtype=torch.int32) if packed else None,
        longest=tokens if packed else 0,
    )
