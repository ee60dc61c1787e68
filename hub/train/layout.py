"""How a step is cut into micro-batches on the machine at hand. It changes speed and memory, never the result."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from hub.data.prepare import Sample
from hub.options import AUTO
from hub.train import batches
from hub.train.budget import (
    CPU_TOKENS,
    ENOUGH_TOKENS,
    MASK_TOKENS,
    MOST_TOKENS,
    Need,
    asked_bound,
    choose_bound,
    hidden_bytes,
    in_words,
    measured_bytes,
    room_for_activations,
)
from hub.train.collate import MicroBatch, pack, pad, weightless
from hub.train.distributed import max_over_ranks
from hub.train.fast import choose_attention, choose_compile, choose_head
from hub.train.isolation import can_pack
from hub.train.kernels import compile_layers, fused_head, hidden_states_in, layers_of, recompute
from hub.train.loss import causal_lm_loss
from hub.train.own_kernels import OwnKernels
from hub.train.setup import Setup


@dataclass(frozen=True)
class Layout:
    """The bound of a micro-batch and the form of its rows."""

    max_tokens: int
    packed: bool
    pad_id: int
    cost_ratio: float
    least: int = 1
    """Micro-batches of a step on each process, at least."""

    def micro_batches(self, samples: Sequence[Sample], rank: int, world: int) -> list[MicroBatch]:
        """This rank's micro-batches of one step. All ranks get the same number of them."""
        chosen = [[samples[i] for i in part] or [weightless(samples[0])] for part in self._split(samples, world)[rank]]
        return [pack(part) if self.packed else pad(part, self.pad_id) for part in chosen]

    def efficiency(self, samples: Sequence[Sample], world: int) -> float:
        """Tokens of a step over those that its micro-batches would hold if all were as large as the largest."""
        parts = [[len(samples[i]) for i in part] for rank in self._split(samples, world) for part in rank]
        sizes = [sum(part) if self.packed else len(part) * max(part, default=0) for part in parts]
        return sum(map(sum, parts)) / (len(sizes) * max(sizes))

    def _split(self, samples: Sequence[Sample], world: int) -> list[list[list[int]]]:
        """Positions of each rank's samples, by micro-batch."""
        lengths = [len(sample) for sample in samples]
        if not self.packed:
            # Padding counts against the bound as well.
            lengths = [max(lengths)] * len(lengths)
        # Of a stream nobody knows the longest sample: one above the bound has a micro-batch of its length.
        return batches.split(lengths, world, max(self.max_tokens, *lengths), self.cost_ratio, self.least)

    def halved(self, longest: int) -> "Layout | None":
        """Half the tokens per micro-batch, but room for the longest sample; None when it was no more than that already."""
        smaller = max(longest, self.max_tokens // 2)
        return replace(self, max_tokens=smaller) if smaller < self.max_tokens else None


def choose_layout(
    setup: Setup,
    model: Any,
    loss: Callable[[Any, MicroBatch], torch.Tensor],
    num_parameters: int,
    own: OwnKernels | None = None,
) -> Layout:
    """Decide how steps are cut and which kernels run on this machine, say why, and set the model up for it.

    Args:
        setup: config, run folder, processes, tokenizer, data.
        model: ready to train; passes forward work.
        loss: of a micro-batch.
        num_parameters: of the model.
        own: what the model's library has put into it; the hub puts in nothing then.
    """
    cfg, run, session, tokenizer = setup.cfg, setup.run, setup.session, setup.tokenizer
    dtype, device = session.compute_dtype, session.device
    config = model.config.get_text_config()
    if own is not None:
        attention = own.attention
        packed, packed_because = can_pack(model, config.vocab_size, device, dtype, own.inputs)
    else:
        packed, packed_because, attention = choose_attention(model, config.vocab_size, device, dtype)
    fused, fused_because = False, "the loss is the algorithm's own"
    if loss is causal_lm_loss:
        fused, fused_because = choose_head(model, config.vocab_size, device, dtype, packed)
    if own is None and device.type == "cuda" and dtype != torch.float32:
        hidden_states_in(model, dtype)
    layers = layers_of(model)
    compiled, compiled_because = False, f"{own.library} compiles what it wants to" if own is not None else ""
    if own is None:
        num_tokens = expected_tokens(setup)
        compiled, compiled_because = choose_compile(cfg.algo.torch_compile, num_parameters, num_tokens, device)
    if compiled:
        compile_layers(layers)
        if head := fused_head(model):
            head.compiled = True
        run.say("layers are compiled: the first steps take longer")
    memory = _Memory(setup, model, layers, loss, packed, attention, own)
    bound, recomputed, bound_because = memory.choose()
    if not packed:
        run.say(f"samples are padded, not packed: {packed_because}")
    run.write_plan(
        packed=packed,
        packed_because=packed_because,
        attention=attention,
        fused_head=fused,
        fused_head_because=fused_because,
        compiled=compiled,
        compiled_because=compiled_because,
        layers_recomputed=recomputed,
        num_layers=len(layers),
        max_tokens_per_gpu=bound,
        max_tokens_per_gpu_because=bound_because,
    )
    ratio = batches.cost_ratio(config.num_hidden_layers, config.hidden_size, num_parameters)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (tokenizer.eos_token_id or 0)
    return Layout(bound, packed, pad_id, ratio)


def expected_tokens(setup: Setup) -> float:
    """Tokens that the whole run trains on, by the mean length of the samples at hand."""
    mean = sum(len(sample) for sample in setup.data.train) / max(1, len(setup.data.train))
    return mean * setup.supply.batch_size * setup.supply.total


class _Memory:
    """The bound of a micro-batch and the layers that recompute their activations, by what is free on every rank."""

    def __init__(
        self,
        setup: Setup,
        model: Any,
        layers: list[torch.nn.Module],
        loss: Any,
        packed: bool,
        attention: str,
        own: OwnKernels | None,
    ) -> None:
        self.setup, self.model, self.layers, self.loss, self.packed, self.own = setup, model, layers, loss, packed, own
        self.asked = asked_bound(setup.cfg.algo, setup.data.longest)
        self.recompute = setup.cfg.algo.gradient_checkpointing
        self.most = MOST_TOKENS if attention == "variable-length" else MASK_TOKENS
        self.device = setup.session.device

    def choose(self) -> tuple[int, int, str]:
        """The bound, the number of layers that recompute, and why. The layers are set up for it."""
        longest = self.setup.data.longest
        if self.device.type != "cuda":
            num = self._recompute(len(self.layers) if self.recompute == "all" else 0)
            return self.asked or max(longest, CPU_TOKENS), num, "asked for" if self.asked else "enough to keep the CPU busy"
        if self.asked and (self.recompute != AUTO or self.own is not None):
            num = self._recompute(len(self.layers) if self.recompute == "all" else 0)
            return self.asked, num, "asked for"
        strategy = self.setup.session.strategy
        shares, repeatable = strategy.shares_of_state(self.setup.session.group.world), self.setup.cfg.algo.deterministic
        room = room_for_activations(self.model, self.device, shares, repeatable)
        room = -max_over_ranks(-room)
        need = self._measure(room)
        found = choose_bound(need, room, self.asked or longest, self.asked or self.most)
        bound, num = found or (self.asked or longest, len(self.layers))
        bound, num = int(-max_over_ranks(-bound)), int(max_over_ranks(num))
        because = "asked for" if self.asked else in_words(need, room, num)
        return bound, self._recompute(num), because

    def _recompute(self, num: int) -> int:
        """Let so many layers recompute their activations, if that is for the hub to say. Returns how many do."""
        if self.own is not None:
            return len(self.layers) if self.own.recomputes else 0
        recompute(self.layers[:num])
        return num

    def _measure(self, room: float) -> Need:
        """What a token takes with all activations kept, and with all recomputed; by estimate where a pass would be unsafe."""
        # A measure differs a little from run to run, and with it the cut into micro-batches: other sums, other dropout.
        estimated = self.setup.session.strategy.has_engine or self.setup.cfg.algo.deterministic
        config = self.model.config
        kept, recomputed = (hidden_bytes(config, checkpointed) for checkpointed in (False, True))
        if self.own is not None:
            kept = recomputed = hidden_bytes(config, self.own.recomputes)
        samples = self._samples(int(room / kept))
        tokens = sum(len(sample) for sample in samples)
        if estimated or not self.layers or max_over_ranks(float(recomputed * tokens > room)):
            return Need(kept, recomputed, len(self.layers) if self.own is None else 0)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        batch = (pack(samples) if self.packed else pad(samples, 0)).to(self.device)

        def run_pass() -> int:
            with self.setup.session.autocast():
                found = self.loss(self.model, batch)
            found.backward()
            return int(batch.input_ids.numel())

        if self.own is not None:
            as_it_is = measured_bytes(run_pass, parameters, self.device)
            return Need(as_it_is, as_it_is, 0)
        keeps = self.recompute != "all" and not max_over_ranks(float(kept * tokens > room))
        if keeps:
            kept = measured_bytes(run_pass, parameters, self.device)
        if self.recompute == "none":
            return Need(kept, kept, 0)
        undo = recompute(self.layers)
        recomputed = measured_bytes(run_pass, parameters, self.device)
        undo()
        kept = kept if keeps else max(kept, recomputed)
        return Need(recomputed if self.recompute == "all" else kept, recomputed, len(self.layers))

    def _samples(self, most: int) -> list[Sample]:
        """Some of the run's own samples: as many as a micro-batch has, and no more tokens than are sure to fit."""
        most = min(self.asked or ENOUGH_TOKENS, MOST_TOKENS, most)
        chosen: list[Sample] = []
        for sample in self.setup.data.train:
            if sum(map(len, chosen)) + len(sample) <= most:
                chosen.append(sample)
        return chosen or [min(self.setup.data.train, key=len)]
