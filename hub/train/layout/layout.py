"""How a step is split into micro-batches on this machine. The layout changes speed and memory, never the result."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from transformers import PreTrainedTokenizerBase

from hub.data.samples.sample import Sample
from hub.models.causality import check_causal
from hub.models.four_bit import is_4bit
from hub.models.patches import ModelPatches, patches_of
from hub.models.structure import input_embeddings, layers_of, max_positions, text_config
from hub.train.batch import split as batches
from hub.train.batch.collate import MicroBatch, pack, pad, weightless
from hub.train.kernels.compiled import CompiledLayers
from hub.train.kernels.external import ExternalKernels
from hub.train.kernels.half_experts import HalfExperts
from hub.train.kernels.hidden_states import HiddenStatesIn
from hub.train.kernels.packed_experts import use_packed
from hub.train.kernels.rope import use_own_rope
from hub.train.kernels.unpack import use_kernel
from hub.train.layout.activations import Activations
from hub.train.layout.choose import Attention, choose_attention, choose_compile, choose_head
from hub.train.layout.isolation import can_pack
from hub.train.layout.memory_budget import most_tokens
from hub.train.losses.causal_lm import causal_lm_loss
from hub.train.setup.setup import Setup


@dataclass(frozen=True)
class Layout:
    """The token budget of a micro-batch and the form of its rows."""

    max_tokens: int
    packed: bool
    pad_id: int
    cost_ratio: float
    least: int = 1
    """Fewest micro-batches of a step on each process."""

    num_checkpointed: int = 0
    """Layers with activation checkpointing."""

    def micro_batches(self, samples: Sequence[Sample], rank: int, world: int) -> list[MicroBatch]:
        """This rank's micro-batches of one step. All ranks get the same number of them."""
        return [self._collate(samples, positions) for positions in self._split(samples, world)[rank]]

    def _collate(self, samples: Sequence[Sample], positions: Sequence[int]) -> MicroBatch:
        chosen = [samples[i] for i in positions] or [weightless(samples[0])]
        batch = pack(chosen) if self.packed else pad(chosen, self.pad_id)
        return replace(batch, samples=tuple(positions))

    def efficiency(self, samples: Sequence[Sample], world: int) -> float:
        """Tokens of a step over those that its micro-batches would hold if all were as large as the largest."""
        sizes = []
        for part in chain.from_iterable(self._split(samples, world)):
            lengths = [len(samples[i]) for i in part]
            sizes.append(sum(lengths) if self.packed else len(lengths) * max(lengths, default=0))
        return sum(map(len, samples)) / (len(sizes) * max(sizes))

    def _split(self, samples: Sequence[Sample], world: int) -> list[list[list[int]]]:
        """Positions of each rank's samples, by micro-batch."""
        lengths = [len(sample) for sample in samples]
        if not self.packed:
            # Padding counts against the bound as well.
            lengths = [max(lengths)] * len(lengths)
        # Of a stream nobody knows the longest sample: one above the bound has a micro-batch of its length.
        return batches.split(lengths, world, max(self.max_tokens, *lengths), self.cost_ratio, self.least)

    def halved(self, longest: int) -> "Layout | None":
        """Halve the token budget, but keep room for the longest sample. None if the budget is no more than that already."""
        smaller = max(longest, self.max_tokens // 2)
        return replace(self, max_tokens=smaller) if smaller < self.max_tokens else None


Shrink = Callable[[Layout, int], Layout | None]
"""Make a layout that takes less memory, given the tokens of the longest sample. None if there is none."""


def choose_layout(
    setup: Setup,
    model: torch.nn.Module,
    loss: Callable[[torch.nn.Module, MicroBatch], torch.Tensor],
    num_parameters: int,
    external: ExternalKernels | None = None,
) -> tuple[Layout, Shrink]:
    """Choose how steps are split and which GPU optimizations are on, patch the model accordingly, and write it to plan.json.

    Args:
        setup: config, run folder, processes, tokenizer, data.
        model: ready to train. Forward passes work.
        loss: of a micro-batch.
        num_parameters: of the model.
        external: the kernels of an external library, in place of the hub's.

    Returns:
        The layout; and what to do in training if memory runs out: more activation checkpointing, then half the tokens, at last
        offload.

    Raises:
        ModelError: the model sees later tokens.
    """
    run = setup.run
    patches, layers = patches_of(model), layers_of(model)
    device, dtype = setup.session.device, setup.session.compute_dtype
    if device.type == "cpu" and _has_wider_embeddings(model, dtype):
        patches.apply(HiddenStatesIn(model, dtype))
    check_causal(model, text_config(model).vocab_size, device, dtype)
    config = text_config(model)
    # Of a stream nobody knows the longest sample.
    longest = max_positions(config) or sys.maxsize if setup.cfg.data.streaming else setup.data.longest
    if words := use_own_rope(patches, model, longest, external.library if external else ""):
        run.say(words)
    if external is None:
        attention = _patch_passes(setup, patches, model, layers, loss, num_parameters)
    else:
        attention = _leave_to(external, setup, patches, model)
    memory = Activations(setup, model, patches, layers, loss, attention.packed, attention.variable_length, external)
    max_tokens, num_checkpointed, max_tokens_because = memory.choose()
    if not attention.packed:
        run.say(f"samples are padded, not packed: {attention.packed_because}")
    patches.decide("layers_recomputed", num_checkpointed if external is not None else 0)
    patches.decide("activation_offload", False, memory.offload_because)
    run.write_plan(
        packed=attention.packed,
        packed_because=attention.packed_because,
        num_layers=len(layers),
        max_tokens_per_gpu=max_tokens,
        max_tokens_per_gpu_because=max_tokens_because,
        **patches.plan(),
    )
    layout = Layout(
        max_tokens,
        attention.packed,
        _pad_id(setup.tokenizer, config.vocab_size),
        batches.cost_ratio(config.num_hidden_layers, config.hidden_size, num_parameters),
        num_checkpointed=num_checkpointed,
    )

    def shrink(layout: Layout, longest: int) -> Layout | None:
        if (more := memory.checkpoint_more()) is not None:
            return replace(layout, num_checkpointed=more)
        if (smaller := layout.halved(longest)) is not None:
            return smaller
        return replace(layout, num_checkpointed=len(layers)) if memory.offload_more() else None

    return layout, shrink


def _patch_passes(
    setup: Setup,
    patches: ModelPatches,
    model: torch.nn.Module,
    layers: list[torch.nn.Module],
    loss: Callable[[torch.nn.Module, MicroBatch], torch.Tensor],
    num_parameters: int,
) -> Attention:
    """Turn on the hub's optimizations of the forward and backward pass. Returns the attention."""
    run, dtype, device = setup.run, setup.session.compute_dtype, setup.session.device
    vocab_size = text_config(model).vocab_size
    num_tokens = expected_tokens(setup)
    compiled, compiled_because = choose_compile(setup.cfg.algo.torch_compile, num_parameters, num_tokens, device)
    attention = choose_attention(patches, model, vocab_size, device, dtype, compiled, most_tokens(setup.cfg.algo, device))
    patches.decide("fused_head", False, "the loss is the algorithm's own")
    if loss is causal_lm_loss:
        choose_head(patches, model, vocab_size, device, dtype, attention.packed)
    if device.type == "cuda" and dtype != torch.float32:
        patches.apply(HiddenStatesIn(model, dtype))
        patches.apply(HalfExperts(model))
    if device.type == "cuda" and any(is_4bit(module) for module in model.modules()):
        use_kernel(patches, model)
    if device.type == "cuda":
        use_packed(patches, model)
    patches.decide("compiled", False, compiled_because)
    if compiled:
        patches.apply(CompiledLayers(layers))
        run.say("layers are compiled: the first steps take longer")
    return attention


def _leave_to(external: ExternalKernels, setup: Setup, patches: ModelPatches, model: torch.nn.Module) -> Attention:
    """Patch nothing: a library's own kernels are on. Returns its attention."""
    dtype, device = setup.session.compute_dtype, setup.session.device
    vocab_size, most = text_config(model).vocab_size, most_tokens(setup.cfg.algo, device)
    packable = can_pack(model, vocab_size, device, dtype, external.inputs, most)
    attention = Attention(external.attention, f"{external.library} brings it", *packable, external.variable_length)
    patches.decide("attention", attention.name, attention.because)
    patches.decide("fused_head", False, f"{external.library} has its own loss")
    patches.decide("compiled", False, f"{external.library} compiles what it wants to")
    return attention


def _has_wider_embeddings(model: torch.nn.Module, dtype: torch.dtype) -> bool:
    """Whether the embeddings train in float32 beside frozen layers in the compute dtype.

    On a CPU autocast leaves norms as they are, and a norm in bfloat16 takes no float32.
    """
    wider = input_embeddings(model).weight.dtype != dtype
    return wider and any(not parameter.requires_grad and parameter.dtype == dtype for parameter in model.parameters())


def _pad_id(tokenizer: PreTrainedTokenizerBase, num_embeddings: int) -> int:
    """The token of padded places. Any serves that has an embedding: nothing sees it."""
    known = [number for number in (tokenizer.pad_token_id, tokenizer.eos_token_id) if number is not None]
    return next((number for number in known if number < num_embeddings), 0)


def expected_tokens(setup: Setup) -> float:
    """Estimate the tokens of the whole training from the mean length of the samples."""
    mean = sum(len(sample) for sample in setup.data.train) / max(1, len(setup.data.train))
    return mean * setup.source.batch_size * setup.source.total
