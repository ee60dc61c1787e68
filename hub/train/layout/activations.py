"""How many tokens a micro-batch may have, and what becomes of activations: kept, recomputed, or moved to the host."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from hub.config.option import AUTO
from hub.data.prepare import Sample
from hub.data.samples.sample import samples_of
from hub.parallel.group import max_over_ranks
from hub.run import ASKED_FOR
from hub.system.memory import free_host_memory_for_each
from hub.train.batch.collate import pack, pad
from hub.train.kernels.external import OwnKernels
from hub.train.kernels.host_embedding import hold_on_host
from hub.train.kernels.offload import HostInputs
from hub.train.kernels.recompute import base_of, recompute
from hub.train.kernels.tiles import LEAST_TOKENS, divides_from
from hub.train.layout.memory_budget import (
    CPU_TOKENS,
    ENOUGH_TOKENS,
    MASK_TOKENS,
    MOST_TOKENS,
    TOLL_OF_SHARES,
    Line,
    Need,
    asked_bound,
    choose_bound,
    hidden_bytes,
    in_words,
    loads_of,
    measured,
    room_for_activations,
)
from hub.train.setup.setup import Setup

NUM_LOOKED_AT = 1000
"""Samples among which those for a measurement are found."""

SHARE_OF_HOST_MEMORY = 0.7
"""Of what is free there, for what layers keep: checkpoints and data need room too."""

TIMES_EASED = 8
"""Times that memory may run out before all layers recompute their activations."""


class Activations:
    """The bound of a micro-batch and the layers that recompute their activations, by what is free on every rank."""

    def __init__(
        self,
        setup: Setup,
        model: Any,
        layers: list[torch.nn.Module],
        loss: Any,
        packed: bool,
        variable_length: bool,
        own: OwnKernels | None,
    ) -> None:
        self.setup, self.model, self.layers, self.loss, self.packed, self.own = setup, model, layers, loss, packed, own
        self.num_recomputed = 0
        self.asked = asked_bound(setup.cfg.algo, setup.data.longest)
        self.recompute = setup.cfg.algo.gradient_checkpointing
        self.most = MOST_TOKENS if variable_length else MASK_TOKENS
        self.device = setup.session.device
        asked = setup.cfg.algo.activation_offload
        self.offload_because = ASKED_FOR if asked != AUTO else "it fits without"
        if self.device.type != "cuda":
            self.offload_because = "there is no GPU: all is in the host's memory"
            if asked == "all":
                setup.run.say(f"algo.activation_offload=all changes nothing: {self.offload_because.partition(': ')[0]}")
        self.may_offload = asked == AUTO and self.recompute != "none" and own is None
        self.offload = self._host_inputs() if asked == "all" and self.device.type == "cuda" else None

    def choose(self) -> tuple[int, int, str]:
        """The bound, the number of layers that recompute, and why. The layers are set up for it."""
        longest = self.setup.data.longest
        if self.device.type != "cuda":
            num = self._recompute(len(self.layers) if self.recompute == "all" else 0)
            return self.asked or max(longest, CPU_TOKENS), num, ASKED_FOR if self.asked else "enough to keep the CPU busy"
        if self.asked and (self.recompute != AUTO or self.own is not None):
            num = self._recompute(len(self.layers) if self.recompute == "all" else 0)
            return self.asked, num, ASKED_FOR
        strategy = self.setup.session.strategy
        shares, repeatable = strategy.shares_of_state(self.setup.session.group.world), self.setup.cfg.algo.deterministic
        # Bytes are estimated where runs shall be alike, and a rank that holds shares of the others' layers can't go on alone.
        cautious = repeatable or self.own is not None or not strategy.recovers_memory
        room = room_for_activations(self.model, self.device, shares, repeatable, cautious)
        room = -max_over_ranks(-room)
        toll = TOLL_OF_SHARES if strategy.shares_weights else 0
        most = self.most * 2 if toll and self.most == MOST_TOKENS else self.most
        # A bound that was asked for is planned for in full where no step can be done again.
        loads = self._loads() if (toll and not self.asked) or (self.asked and not cautious) else []

        def decide(need: Need) -> tuple[int, int] | None:
            return choose_bound(need, room, longest, most, self.asked, loads, toll)

        def is_enough(need: Need) -> bool:
            """Whether nothing is to be gained from recomputing, on no rank."""
            bound, _ = decide(need) or (0, 0)
            return not max_over_ranks(float(bound < (self.asked or most)))

        need = self._measure(room, is_enough)
        found = decide(need)
        if max_over_ranks(float(found is None)) and self.may_offload:
            self.offload = self._host_inputs()
            self.offload_because = f"{self.asked or longest} tokens do not fit without, even with all layers recomputed"
            self.setup.run.say(f"inputs of recomputed layers go to the host's memory: {self.offload_because}")
        bound, num = found or (self.asked or longest, len(self.layers))
        bound, num = int(-max_over_ranks(-bound)), int(max_over_ranks(num))
        because = ASKED_FOR if self.asked else in_words(need, room, num)
        return bound, self._recompute(num), because

    def _host_inputs(self) -> HostInputs:
        """For the inputs of all layers, and for what their attention gives, if the host has room for both.

        A frozen embedding goes there too. With the memory that this frees, MLPs take few tokens at once.
        """
        base, freed = base_of(self.model), 0
        if self.own is None and not self.setup.session.strategy.shares_weights:
            problem = hold_on_host(base)
            freed = 0 if problem else base.get_input_embeddings().weight.nbytes
            because = problem or "inputs of layers go there too"
            self.setup.run.write_plan(embedding_on_host=not problem, embedding_on_host_because=because)
        tokens = self.asked or self.setup.data.longest
        config, itemsize = self.model.config.get_text_config(), self.setup.session.compute_dtype.itemsize
        room = SHARE_OF_HOST_MEMORY * free_host_memory_for_each()
        keeps_attention = 2 * tokens * config.hidden_size * itemsize * len(self.layers) <= room
        width = getattr(config, "intermediate_size", None)
        least = divides_from(freed, width, itemsize) if isinstance(width, int) else LEAST_TOKENS
        return HostInputs(self.device, keeps_attention=keeps_attention, divides_from=least)

    def _loads(self) -> list[float]:
        lengths = [len(sample) for sample in samples_of(self.setup.data.train[:NUM_LOOKED_AT])]
        return loads_of(lengths, self.setup.supply.batch_size / self.setup.session.group.world)

    def _recompute(self, num: int) -> int:
        """Let so many layers recompute their activations, if that is for the hub to say. Returns how many do."""
        if self.own is not None:
            return len(self.layers) if self.own.recomputes else 0
        recompute(self.layers[:num], self.offload)
        self.num_recomputed = num
        return num

    def recompute_more(self) -> int | None:
        """Let some more layers recompute their activations. Returns how many do now; None when it is not for the hub to say."""
        left = len(self.layers) - self.num_recomputed
        if self.own is not None or self.recompute != AUTO or not left:
            return None
        more = min(left, math.ceil(len(self.layers) / TIMES_EASED))
        recompute(self.layers[self.num_recomputed : self.num_recomputed + more], self.offload)
        self.num_recomputed += more
        return self.num_recomputed

    def _measure(self, room: float, is_enough: Callable[[Need], bool]) -> Need:
        """What a pass takes with all activations kept, and with all recomputed; by estimate where it would be unsafe.

        With recomputed ones only if that with kept ones does not say enough: it may have to be compiled for that.
        """
        # A measure differs a little from run to run, and with it the cut into micro-batches: other sums, other dropout.
        estimated = self.setup.session.strategy.has_engine or self.setup.cfg.algo.deterministic
        config = self.model.config
        kept, recomputed = (Line(hidden_bytes(config, checkpointed)) for checkpointed in (False, True))
        if self.own is not None:
            kept = recomputed = Line(hidden_bytes(config, self.own.recomputes))
        samples = self._samples(kept.tokens(room))
        tokens = sum(len(sample) for sample in samples)
        if estimated or not self.layers or max_over_ranks(float(recomputed.per_token * tokens > room)):
            return Need(kept, recomputed, len(self.layers) if self.own is None else 0)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        # Two sizes tell what grows with the tokens from what does not. Of one long row there is one size only.
        fewer = self._samples(tokens // 2)
        sizes = [fewer, samples] if sum(map(len, fewer)) < tokens else [samples]
        passes = [partial(self._pass, part) for part in sizes]
        if self.own is not None:
            as_it_is = measured(passes, parameters, self.device)
            return Need(as_it_is, as_it_is, 0)
        keeps = self.recompute != "all" and not max_over_ranks(float(kept.per_token * tokens > room))
        if keeps:
            kept = measured(passes, parameters, self.device)
        without = Need(kept, kept, 0)
        if self.recompute == "none" or (keeps and is_enough(without)):
            return without
        undo = recompute(self.layers, self.offload)
        recomputed = measured(passes, parameters, self.device)
        undo()
        if self.recompute == "all":
            kept = recomputed
        elif not keeps:
            kept = max(kept, recomputed, key=lambda line: line.per_token)
        return Need(kept, recomputed, len(self.layers))

    def _pass(self, samples: list[Sample]) -> int:
        """One forward and backward. Returns its number of tokens."""
        batch = (pack(samples) if self.packed else pad(samples, 0)).to(self.device)
        with self.setup.session.autocast():
            found = self.loss(self.model, batch)
        found.backward()
        return int(batch.input_ids.numel())

    def _samples(self, most: int) -> list[Sample]:
        """Some of the run's own samples: as many as a micro-batch has, and no more tokens than are sure to fit."""
        most = min(self.asked or ENOUGH_TOKENS, MOST_TOKENS, most)
        chosen: list[Sample] = []
        samples = samples_of(self.setup.data.train[:NUM_LOOKED_AT])
        for sample in samples:
            if len(sample) <= most:
                chosen.append(sample)
                most -= len(sample)
        return chosen or [min(samples, key=len)]
