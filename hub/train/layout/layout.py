"""How a step is cut into micro-batches on the machine at hand. It changes speed and memory, never the result."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from hub.data.prepare import Sample
from hub.models.four_bit import is_4bit
from hub.train.batch import split as batches
from hub.train.batch.collate import MicroBatch, pack, pad, weightless
from hub.train.kernels.compiled import compile_layers
from hub.train.kernels.external import OwnKernels
from hub.train.kernels.recompute import hidden_states_in, layers_of
from hub.train.kernels.unpack import use_kernel
from hub.train.layout.activations import Activations
from hub.train.layout.choose import Attention, choose_attention, choose_compile, choose_head
from hub.train.layout.isolation import can_pack
from hub.train.losses.causal_lm import causal_lm_loss
from hub.train.setup.setup import Setup


@dataclass(frozen=True)
class Layout:
    """The bound of a micro-batch and the form of its rows."""

    max_tokens: int
    packed: bool
    pad_id: int
    cost_ratio: float
    least: int = 1
    """Micro-batches of a step on each process, at least."""

    num_recomputed: int = 0
    """Layers that recompute their activations."""

    recompute_more: Callable[[], int | None] = field(default=lambda: None, repr=False, compare=False)
    """Lets more of them do so. Returns how many do now; None when no more can."""

    def micro_batches(self, samples: Sequence[Sample], rank: int, world: int) -> list[MicroBatch]:
        """This rank's micro-batches of one step. All ranks get the same number of them."""
        return [self._collate(samples, positions) for positions in self._split(samples, world)[rank]]

    def _collate(self, samples: Sequence[Sample], positions: Sequence[int]) -> MicroBatch:
        chosen = [samples[i] for i in positions] or [weightless(samples[0])]
        batch = pack(chosen) if self.packed else pad(chosen, self.pad_id)
        return replace(batch, samples=tuple(positions))

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

    def eased(self, longest: int) -> "Layout | None":
        """What training takes less memory with: more layers that recompute their activations, then half the tokens."""
        more = self.recompute_more()
        return self.halved(longest) if more is None else replace(self, num_recomputed=more)

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
    if own is None:
        num_tokens = expected_tokens(setup)
        compiled, compiled_because = choose_compile(cfg.algo.torch_compile, num_parameters, num_tokens, device)
        attention = choose_attention(model, config.vocab_size, device, dtype, compiled)
    else:
        compiled, compiled_because = False, f"{own.library} compiles what it wants to"
        packable = can_pack(model, config.vocab_size, device, dtype, own.inputs)
        attention = Attention(own.attention, f"{own.library} brings it", *packable, variable_length=own.variable_length)
    packed = attention.packed
    fused, fused_because = False, "the loss is the algorithm's own"
    if loss is causal_lm_loss:
        fused, fused_because = choose_head(model, config.vocab_size, device, dtype, packed)
    if own is None and device.type == "cuda" and dtype != torch.float32:
        hidden_states_in(model, dtype)
    if own is None and device.type == "cuda" and any(is_4bit(module) for module in model.modules()):
        problem = use_kernel(model)
        run.write_plan(
            unpacking="bitsandbytes" if problem else "the hub's kernel",
            unpacking_because=problem or "the same numbers, in one go",
        )
    layers = layers_of(model)
    if compiled:
        compile_layers(layers)
        run.say("layers are compiled: the first steps take longer")
    memory = Activations(setup, model, layers, loss, packed, attention.variable_length, own)
    bound, recomputed, bound_because = memory.choose()
    if not packed:
        run.say(f"samples are padded, not packed: {attention.packed_because}")
    run.write_plan(
        packed=packed,
        packed_because=attention.packed_because,
        attention=attention.name,
        attention_because=attention.because,
        fused_head=fused,
        fused_head_because=fused_because,
        compiled=compiled,
        compiled_because=compiled_because,
        layers_recomputed=recomputed,
        num_layers=len(layers),
        activation_offload=memory.offload is not None,
        activation_offload_because=memory.offload_because,
        max_tokens_per_gpu=bound,
        max_tokens_per_gpu_because=bound_because,
    )
    ratio = batches.cost_ratio(config.num_hidden_layers, config.hidden_size, num_parameters)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (tokenizer.eos_token_id or 0)
    return Layout(bound, packed, pad_id, ratio, num_recomputed=recomputed, recompute_more=memory.recompute_more)


def expected_tokens(setup: Setup) -> float:
    """Tokens that the whole run trains on, by the mean length of the samples at hand."""
    mean = sum(len(sample) for sample in setup.data.train) / max(1, len(setup.data.train))
    return mean * setup.supply.batch_size * setup.supply.total
