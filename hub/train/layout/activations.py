"""Memory of the activations: token budget of a micro-batch, activation checkpointing, CPU offload of what it saves."""

import math
from collections.abc import Callable, Sequence

import torch

from hub.config.option import AUTO
from hub.data.samples.sample import Sample, samples_of
from hub.models.patches import ModelPatches
from hub.models.structure import base_of, input_embeddings, text_config
from hub.parallel.group import max_over_ranks
from hub.run import ASKED_FOR
from hub.system.memory import GpuMemory, Shortage, free_host_memory_for_each, in_gib, memory_of
from hub.train.attempts import too_little
from hub.train.batch.collate import MicroBatch, pack, pad
from hub.train.kernels.checkpointing import Checkpointing, num_checkpointed
from hub.train.kernels.external import ExternalKernels
from hub.train.kernels.host_embedding import EmbeddingOnHost, offload_embedding
from hub.train.kernels.offload import ActivationOffload
from hub.train.kernels.tiles import MIN_TOKENS, tiles_from
from hub.train.layout.kept_memory import compile_as_measured, measured_memory
from hub.train.layout.measured_passes import FIRST_TOKENS, MeasuredPasses
from hub.train.layout.memory_budget import (
    CPU_TOKENS,
    ENOUGH_TOKENS,
    MAX_TOKENS,
    Line,
    PassMemory,
    bytes_per_token,
    choose_max_tokens,
    choose_offloaded,
    describe,
    draw_loads,
    limits,
    pass_memory,
    requested_max_tokens,
    room_for_activations,
    wants_offload,
)
from hub.train.setup.less_memory import instead
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
        self.memory: GpuMemory | None = memory_of(self.device)
        requested = setup.cfg.algo.activation_offload
        self.offload_because = ASKED_FOR if requested != AUTO else "it fits without"
        if self.memory is None:
            self.offload_because = "there is no GPU: all is in CPU memory"
            if requested == "all":
                setup.run.say(f"algo.activation_offload=all changes nothing: {self.offload_because.partition(': ')[0]}")
        self.may_offload = requested == AUTO and self.checkpointing != "none" and external is None
        self.offload = self._make_offload() if requested == "all" and self.memory is not None else None

    def choose(self) -> tuple[int, int, str]:
        """Choose the token budget and the number of checkpointed layers, and turn their checkpointing on.

        Returns:
            Both, and the reason for the budget.
        """
        all_or_none = len(self.layers) if self.checkpointing == "all" else 0
        if self.memory is None:
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

    def offload_more(self) -> bool:
        """Let all layers checkpoint and offload their inputs, if memory runs out and nothing else is left.

        Returns:
            Whether that takes less memory than before: False if it is on already, or the user or a library decides it.
        """
        if not self.may_offload or self.offload is not None or self.memory is None:
            return False
        self._turn_on_offload("the longest sample did not fit otherwise")
        for patch in reversed(self.patches.all(Checkpointing)):
            self.patches.undo(patch)
        self.patches.apply(Checkpointing(self.layers, self.offload))
        self.setup.run.write_plan(activation_offload=True, activation_offload_because=self.offload_because)
        return True

    def _choose_by_memory(self) -> tuple[int, int, str]:
        longest = self.setup.data.longest
        strategy = self.setup.session.strategy
        repeatable = self.setup.cfg.algo.deterministic
        # Bytes are estimated if runs must be alike, and a rank that holds shards of the others' layers can't go on alone.
        cautious = repeatable or self.external is not None or not strategy.recovers_memory
        room = self._room(cautious)
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
        choice = _agreed(decide(memory) if memory is not None else None)
        line = None if memory is None else memory.with_checkpointed(memory.num_layers)
        if self.may_offload and self.offload is None:
            if choice is None:
                self._turn_on_offload(
                    f"{self.requested or longest} tokens do not fit without, even with all layers checkpointed"
                )
            if not cautious and wants_offload(choice, longest, most, self.requested, self._loads):
                choice, room, line = self._choose_offloaded(choice, room, line, most)
        if choice is None and not cautious:
            self._check_longest(line, room)
        max_tokens, num = choice or (self.requested or longest, len(self.layers) if self.checkpointing != "none" else 0)
        if self.requested:
            because = ASKED_FOR
        elif line is None:
            because = "no pass but one of the longest sample alone fits"
        else:
            per_token = line if self.offload is not None or memory is None else memory.with_checkpointed(num)
            because = describe(per_token, room)
        num = self._checkpoint(num)
        compile_as_measured(self.patches, lambda: self._passes().shortage(self._samples(FIRST_TOKENS)))
        return max_tokens, num, because

    def _choose_offloaded(
        self, choice: tuple[int, int] | None, room: float, line: Line | None, most: int
    ) -> tuple[tuple[int, int] | None, float, Line | None]:
        """Measure with offload on. It stays on if that fits more tokens, or if nothing fits without it.

        Args:
            choice: without it.
            room: bytes for activations, without it.
            line: memory of a pass, without it.
            most: budget beyond which nothing is gained.

        Returns:
            The same three of what is on now.
        """
        assert self.memory is not None
        was_on = self.offload is not None
        if not was_on:
            self.offload = self._make_offload()
        more_room = self._room(cautious=False)
        measured: Line | None = None

        def measure() -> PassMemory | None:
            with self.patches.temporarily(Checkpointing(self.layers, self.offload)):
                line = self._passes().line(self.requested or ENOUGH_TOKENS, more_room)
            return None if line is None else PassMemory(line, line, len(self.layers))

        more_room, found_memory = measured_memory(more_room, measure)
        if found_memory is not None:
            measured = found_memory.checkpointed
        found = None
        if measured is not None:
            found = choose_offloaded(measured, more_room, self.setup.data.longest, most, self.requested)
        offloaded = _agreed(None if found is None else (found, len(self.layers)))
        if was_on:
            return offloaded, more_room, measured
        if offloaded is None or choice is None or offloaded[0] <= choice[0]:
            self.offload = None
            self.patches.decide("embedding_on_host", False, "it fits without")
            if (moved := self.patches.find(EmbeddingOnHost)) is not None:
                self.patches.undo(moved)
            return choice, room, line
        self._say_offload(f"only {choice[0]} tokens fit without")
        return offloaded, more_room, measured

    def _turn_on_offload(self, because: str) -> None:
        self.offload = self._make_offload()
        self._say_offload(because)

    def _say_offload(self, because: str) -> None:
        self.offload_because = because
        self.setup.run.say(f"inputs of checkpointed layers are offloaded to CPU memory: {because}")

    def _room(self, cautious: bool) -> float:
        """Bytes for activations, the fewest of all ranks."""
        assert self.memory is not None
        session, repeatable = self.setup.session, self.setup.cfg.algo.deterministic
        num_shards = session.strategy.num_state_shards(session.group.world)
        return -max_over_ranks(-room_for_activations(self.model, self.memory, num_shards, repeatable, cautious))

    def _check_longest(self, line: Line | None, room: float) -> None:
        """Run the longest sample alone, with all that saves memory, since nothing that was measured says that it fits.

        Raises:
            ModelError: it does not fit.
        """
        sample = max(samples_of(self.setup.data.train[:NUM_CANDIDATES]), key=len)
        checkpoints = self.external is None and self.checkpointing != "none"
        with self.patches.temporarily(Checkpointing(self.layers if checkpoints else [], self.offload)):
            shortage = self._passes().shortage([sample])
        if shortage is None:
            return
        fits = 0 if line is None else line.tokens(room)
        if shortage.missing is None and line is not None:
            shortage = Shortage(line.fixed + line.per_token * len(sample), max(0.0, room))
        eased = "with all layers checkpointed" if checkpoints else "without activation checkpointing"
        eased += " and their inputs in CPU memory" if self.offload is not None else ""
        weights = in_gib(sum(tensor.nbytes for tensor in (*self.model.parameters(), *self.model.buffers())))
        what = f"a sample of {len(sample):,} tokens does not fit beside weights of {weights}, {eased}"
        raise too_little(what, shortage, instead(self.setup.cfg, optimizer=room <= 0, fits=fits))

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

    def _measure(self, room: float, is_enough: Callable[[PassMemory], bool]) -> PassMemory | None:
        """Measure a pass without checkpointing and with all layers checkpointed; estimate both if a measurement is unsafe.

        The second pass is left out if the first one is enough: it may have to be compiled for that.

        Returns:
            None if not even a pass over few tokens fits.
        """
        strategy = self.setup.session.strategy
        # A measurement differs a little between runs, and with it the cut into micro-batches: other sums, other dropout.
        estimated = strategy.has_engine or self.setup.cfg.algo.deterministic
        config = text_config(self.model)
        plain, checkpointed = (Line(bytes_per_token(config, is_checkpointed)) for is_checkpointed in (False, True))
        if self.external is not None:
            plain = checkpointed = Line(bytes_per_token(config, self.external.checkpoints))
        most = plain.tokens(room)
        fewest = sum(map(len, self._samples(min(FIRST_TOKENS, most))))
        is_unsafe = not strategy.recovers_memory and bool(max_over_ranks(float(checkpointed.per_token * fewest > room)))
        if estimated or not self.layers or is_unsafe:
            return PassMemory(plain, checkpointed, len(self.layers) if self.external is None else 0)
        passes = self._passes()
        if self.external is not None:
            as_it_is = passes.line(most, room)
            return None if as_it_is is None else PassMemory(as_it_is, as_it_is, 0)
        measured = None
        if self.checkpointing != "all" and not max_over_ranks(float(plain.per_token * fewest > room)):
            measured = passes.line(most, room)
        if self.checkpointing == "none":
            return None if measured is None else pass_memory("none", measured, None, len(self.layers), fits=True)
        if measured is not None and is_enough(PassMemory(measured, measured, 0)):
            return pass_memory(self.checkpointing, measured, None, len(self.layers), fits=True)
        with self.patches.temporarily(Checkpointing(self.layers, self.offload)):
            least = passes.line(most, room)
        if least is None:
            return None
        return pass_memory(self.checkpointing, measured or plain, least, len(self.layers), measured is not None)

    def _passes(self) -> MeasuredPasses:
        assert self.memory is not None
        return MeasuredPasses(
            self.memory,
            self.device,
            self._pass,
            self._samples,
            [parameter for parameter in self.model.parameters() if parameter.requires_grad],
            self.setup.session.strategy.recovers_memory,
            self.setup.data.longest,
            instead(self.setup.cfg),
        )

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


def _agreed(choice: tuple[int, int] | None) -> tuple[int, int] | None:
    """The choice of all ranks: the fewest tokens, the most checkpointed layers. None if it is None on any of them."""
    tokens, num = choice or (0, 0)
    fewest, most = int(-max_over_ranks(-float(tokens))), int(max_over_ranks(float(num)))
    return (fewest, most) if fewest else None
