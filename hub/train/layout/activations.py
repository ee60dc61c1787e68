"""Memory of the activations: token budget of a micro-batch, activation checkpointing, CPU offload of what it saves."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch

from hub.config.option import AUTO
from hub.data.samples.sample import Sample, samples_of
from hub.models.patches import ModelPatches
from hub.models.structure import base_of, input_embeddings, text_config
from hub.parallel.group import max_over_ranks
from hub.run import ASKED_FOR
from hub.system.memory import free_host_memory_for_each
from hub.train.batch.collate import MicroBatch, pack, pad
from hub.train.kernels.checkpointing import Checkpointing, num_checkpointed
from hub.train.kernels.external import ExternalKernels
from hub.train.kernels.host_embedding import offload_embedding
from hub.train.kernels.offload import ActivationOffload
from hub.train.kernels.tiles import MIN_TOKENS, tiles_from
from hub.train.layout.kept_memory import compile_as_measured, measured_memory
from hub.train.layout.memory_budget import (
    CPU_TOKENS,
    ENOUGH_TOKENS,
    MAX_TOKENS,
    Line,
    PassMemory,
    bytes_per_token,
    choose_max_tokens,
    describe,
    draw_loads,
    limits,
    measure,
    pass_memory,
    requested_max_tokens,
    room_for_activations,
)
from hub.train.setup.setup import Setup

NUM_CANDIDATES = 1000
"""Samples among which those of a measurement are chosen."""

HOST_MEMORY_FRACTION = 0.7
"""Fraction of the free CPU memory for what layers save: checkpoints and data need room too."""

NUM_SHRINKS = 8
"""Times that memory may run out before all layers use activation checkpointing."""


class Activations:
    """Chooses the token budget and the layers with activation checkpointing, by the memory that is free on every rank.

    Args:
        setup: config, run folder, processes, tokenizer, data.
        model: ready to train.
        patches: the owner of the model's patches.
        layers: the model's decoder layers.
        loss: of a micro-batch.
        packed: whether samples are packed.
        variable_length: whether the work of attention grows with each sample's own length, not with the row's.
        external: the kernels of an external library; None: the hub's.
    """

    def __init__(
        self,
        setup: Setup,
        model: torch.nn.Module,
        patches: ModelPatches,
        layers: list[torch.nn.Module],
        loss: Callable[[torch.nn.Module, MicroBatch], torch.Tensor],
        packed: bool,
        variable_length: bool,
        external: ExternalKernels | None,
    ) -> None:
        self.setup, self.model, self.patches, self.layers = setup, model, patches, layers
        self.loss, self.packed, self.external = loss, packed, external
        self.requested = requested_max_tokens(setup.cfg.algo, setup.data.longest)
        self.checkpointing = setup.cfg.algo.gradient_checkpointing
        self.variable_length = variable_length
        self.device = setup.session.device
        requested = setup.cfg.algo.activation_offload
        self.offload_because = ASKED_FOR if requested != AUTO else "it fits without"
        if self.device.type != "cuda":
            self.offload_because = "there is no GPU: all is in CPU memory"
            if requested == "all":
                setup.run.say(f"algo.activation_offload=all changes nothing: {self.offload_because.partition(': ')[0]}")
        self.may_offload = requested == AUTO and self.checkpointing != "none" and external is None
        self.offload = self._make_offload() if requested == "all" and self.device.type == "cuda" else None

    def choose(self) -> tuple[int, int, str]:
        """Choose the token budget and the number of checkpointed layers, and turn their checkpointing on.

        Returns:
            Both, and the reason for the budget.
        """
        all_or_none = len(self.layers) if self.checkpointing == "all" else 0
        if self.device.type != "cuda":
            because = ASKED_FOR if self.requested else "enough to keep the CPU busy"
            max_tokens = self.requested or max(self.setup.data.longest, CPU_TOKENS)
            return max_tokens, self._checkpoint(all_or_none), because
        if self.requested and (self.checkpointing != AUTO or self.external is not None):
            return self.requested, self._checkpoint(all_or_none), ASKED_FOR
        return self._choose_by_memory()

    def checkpoint_more(self) -> int | None:
        """Turn checkpointing on in some more layers.

        Returns:
            The number of layers that have it now; None if there are no more, or the user or a library decides it.
        """
        before = num_checkpointed(self.patches)
        left = len(self.layers) - before
        if self.external is not None or self.checkpointing != AUTO or not left:
            return None
        more = min(left, math.ceil(len(self.layers) / NUM_SHRINKS))
        self.patches.apply(Checkpointing(self.layers[before : before + more], self.offload))
        return before + more

    def _choose_by_memory(self) -> tuple[int, int, str]:
        longest = self.setup.data.longest
        strategy = self.setup.session.strategy
        num_shards, repeatable = strategy.num_state_shards(self.setup.session.group.world), self.setup.cfg.algo.deterministic
        # Bytes are estimated if runs must be alike, and a rank that holds shards of the others' layers can't go on alone.
        cautious = repeatable or self.external is not None or not strategy.recovers_memory
        room = room_for_activations(self.model, self.device, num_shards, repeatable, cautious)
        room = -max_over_ranks(-room)
        most, cost = limits(self.variable_length, strategy.shards_weights)
        # A requested budget is planned for in full if no step can be repeated.
        loads = self._loads() if (cost and not self.requested) or (self.requested and not cautious) else []

        def decide(memory: PassMemory) -> tuple[int, int] | None:
            return choose_max_tokens(memory, room, longest, most, self.requested, loads, cost)

        def is_enough(memory: PassMemory) -> bool:
            """Whether checkpointing would gain nothing, on no rank."""
            max_tokens, _ = decide(memory) or (0, 0)
            return not max_over_ranks(float(max_tokens < (self.requested or most)))

        room, memory = measured_memory(room, lambda: self._measure(room, is_enough))
        choice = decide(memory)
        if max_over_ranks(float(choice is None)) and self.may_offload:
            self.offload = self._make_offload()
            self.offload_because = f"{self.requested or longest} tokens do not fit without, even with all layers checkpointed"
            self.setup.run.say(f"inputs of checkpointed layers are offloaded to CPU memory: {self.offload_because}")
        max_tokens, num = choice or (self.requested or longest, len(self.layers))
        max_tokens, num = int(-max_over_ranks(-max_tokens)), int(max_over_ranks(num))
        because = ASKED_FOR if self.requested else describe(memory, room, num)
        num = self._checkpoint(num)
        compile_as_measured(
            self.patches, lambda: self._pass(self._samples(max_tokens)), self._trained(), self.device, not cautious
        )
        return max_tokens, num, because

    def _make_offload(self) -> ActivationOffload:
        """Make the offload of all layers' inputs, and of attention's results if CPU memory has room for both.

        A frozen embedding is offloaded too. The more GPU memory that frees, the more tokens go through an MLP untiled.
        """
        base, freed_bytes = base_of(self.model), 0
        if self.external is None and not self.setup.session.strategy.shards_weights:
            num_bytes = input_embeddings(base).weight.nbytes
            freed_bytes = 0 if offload_embedding(self.patches, base) else num_bytes
        tokens = self.requested or self.setup.data.longest
        config, itemsize = text_config(self.model), self.setup.session.compute_dtype.itemsize
        room = HOST_MEMORY_FRACTION * free_host_memory_for_each()
        saves_attention = 2 * tokens * config.hidden_size * itemsize * len(self.layers) <= room
        width = getattr(config, "intermediate_size", None)
        tiled = tiles_from(freed_bytes, width, itemsize) if isinstance(width, int) else MIN_TOKENS
        return ActivationOffload(self.device, saves_attention=saves_attention, tiles_from=tiled)

    def _loads(self) -> list[float]:
        lengths = [len(sample) for sample in samples_of(self.setup.data.train[:NUM_CANDIDATES])]
        return draw_loads(lengths, self.setup.source.batch_size / self.setup.session.group.world)

    def _checkpoint(self, num: int) -> int:
        """Turn checkpointing on in so many layers, unless a library decides it. Returns how many have it."""
        if self.external is not None:
            return len(self.layers) if self.external.checkpoints else 0
        self.patches.apply(Checkpointing(self.layers[:num], self.offload))
        return num

    def _measure(self, room: float, is_enough: Callable[[PassMemory], bool]) -> PassMemory:
        """Measure a pass without checkpointing and with all layers checkpointed; estimate both if a measurement is unsafe.

        The second pass is left out if the first one is enough: it may have to be compiled for that.
        """
        # A measurement differs a little between runs, and with it the cut into micro-batches: other sums, other dropout.
        estimated = self.setup.session.strategy.has_engine or self.setup.cfg.algo.deterministic
        config = text_config(self.model)
        plain, checkpointed = (Line(bytes_per_token(config, is_checkpointed)) for is_checkpointed in (False, True))
        if self.external is not None:
            plain = checkpointed = Line(bytes_per_token(config, self.external.checkpoints))
        samples = self._samples(plain.tokens(room))
        tokens = sum(len(sample) for sample in samples)
        if estimated or not self.layers or max_over_ranks(float(checkpointed.per_token * tokens > room)):
            return PassMemory(plain, checkpointed, len(self.layers) if self.external is None else 0)
        measure_passes = partial(measure, self._passes(samples), self._trained(), self.device)
        if self.external is not None:
            as_it_is = measure_passes()
            return PassMemory(as_it_is, as_it_is, 0)
        fits = self.checkpointing != "all" and not max_over_ranks(float(plain.per_token * tokens > room))
        if fits:
            plain = measure_passes()
        if self.checkpointing == "none" or (fits and is_enough(PassMemory(plain, plain, 0))):
            return pass_memory(self.checkpointing, plain, None, len(self.layers), fits)
        with self.patches.temporarily(Checkpointing(self.layers, self.offload)):
            checkpointed = measure_passes()
        return pass_memory(self.checkpointing, plain, checkpointed, len(self.layers), fits)

    def _trained(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def _passes(self, samples: list[Sample]) -> list[Callable[[], int]]:
        """Return passes of two sizes, which tell the fixed bytes from those of each token. One long row has one size."""
        fewer = self._samples(sum(map(len, samples)) // 2)
        sizes = [fewer, samples] if sum(map(len, fewer)) < sum(map(len, samples)) else [samples]
        return [partial(self._pass, part) for part in sizes]

    def _pass(self, samples: Sequence[Sample]) -> int:
        """Run one forward and backward pass. Returns its number of tokens."""
        batch = (pack(samples) if self.packed else pad(samples, 0)).to(self.device)
        with self.setup.session.autocast():
            loss = self.loss(self.model, batch)
        loss.backward()
        return int(batch.input_ids.numel())

    def _samples(self, most: int) -> list[Sample]:
        """Choose some of the run's own samples: like a micro-batch's, but no more tokens than are sure to fit."""
        most = min(self.requested or ENOUGH_TOKENS, MAX_TOKENS, most)
        chosen: list[Sample] = []
        samples = samples_of(self.setup.data.train[:NUM_CANDIDATES])
        for sample in samples:
            if len(sample) <= most:
                chosen.append(sample)
                most -= len(sample)
        return chosen or [min(samples, key=len)]
