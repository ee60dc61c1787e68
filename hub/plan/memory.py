"""The memory of a run on some GPUs, and the layout that the run would choose there."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hub.config.option import AUTO
from hub.config.schema import RunConfig
from hub.data.prepare import Prepared
from hub.errors import first_line
from hub.models.four_bit import is_4bit
from hub.models.patches import patches_of
from hub.models.structure import base_of, input_embeddings, layers_of, output_layer, outside_text, text_config
from hub.plan.build import Planned, autocast_as_on_gpu, build_without_data, tensors_without_data
from hub.plan.passes import Passes
from hub.plan.prediction import MemoryPlan, Part
from hub.plan.sharding import Gathered, gathered_by
from hub.plan.static import gradients_part, optimizer_part, size_of, trained_of, weights_parts
from hub.plugins.registry import ResolvedRun
from hub.system.known_gpus import Gpu
from hub.system.memory import CONTEXT, NCCL, bound_for_torch, bound_of
from hub.train.kernels.attention import UnsuitedError, VarlenAttention
from hub.train.kernels.flex import FlexAttention
from hub.train.kernels.half_experts import HalfExperts
from hub.train.kernels.head import FusedHead
from hub.train.kernels.hidden_states import HiddenStatesIn
from hub.train.kernels.packed_experts import PackedExperts, packed_experts
from hub.train.kernels.tiles import MIN_TOKENS, tiles_from
from hub.train.kernels.unpack import UnpackByKernel
from hub.train.layout.choose import choose_compile
from hub.train.layout.memory_budget import (
    ENOUGH_TOKENS,
    Line,
    PassMemory,
    choose_max_tokens,
    choose_offloaded,
    largest_micro_batch,
    limits,
    pass_memory,
    requested_max_tokens,
    room_left,
    wants_offload,
)
from hub.train.losses.causal_lm import causal_lm_loss, takes_positions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORKSPACE = 8320 * 1024
"""Workspace of cuBLAS in torch (`CUBLAS_WORKSPACE_CONFIG`'s default), for each of the two threads that make products."""

WORKSPACE_HOPPER = 32 * 2**20
"""Workspace of cuBLAS on GPUs of Hopper's generation or later."""


@dataclass(frozen=True)
class _Budget:
    """What the layout is chosen by."""

    room: float
    longest: int
    most: int
    requested: int | None
    loads: Sequence[float]
    cost: float

    def choose(self, memory: PassMemory) -> tuple[int, int] | None:
        """The token budget and the checkpointed layers of a run."""
        return choose_max_tokens(memory, self.room, self.longest, self.most, self.requested, self.loads, self.cost)


class Planner:
    """Predicts a run's memory, for any GPU and number of them. What the passes take is found out once.

    Args:
        resolved: the run.
        folder: with the model's config.json.
        dtype: of the arithmetic.
        tokenizer: of the model, if its vocabulary changes.
        data: of the run, if its backend asks for it.
    """

    def __init__(
        self,
        resolved: ResolvedRun,
        folder: Path,
        dtype: torch.dtype,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        data: Prepared | None = None,
    ) -> None:
        self.algo, self.dtype = resolved.config.algo, dtype
        self.planned: Planned = build_without_data(resolved, folder, dtype, tokenizer, data)
        self.model, self.loss = self.planned.recipe.model, self.planned.recipe.loss
        self.layers, self.patches = layers_of(self.model), patches_of(self.model)
        self.trained = trained_of(self.model)
        self.num_parameters = sum(_numel(p) for p in self.model.parameters())
        self._outside = {id(p) for p in outside_text(self.model)}
        self.lines: list[str] = []
        self._passes: dict[tuple[bool, torch.dtype | None], Passes] = {}
        self.variable_length = self._patch()
        self._lines: dict[Hashable, Line] = {}
        self._loss_share = 1.0

    def _patch(self) -> bool:
        """Turn on what a run on a GPU turns on, without its trials. Returns whether attention is of variable length."""
        half = self.dtype in (torch.bfloat16, torch.float16)
        with tensors_without_data(self.planned.mode):
            if self.loss is causal_lm_loss and takes_positions(self.model) and (head := output_layer(self.model)) is not None:
                self.patches.apply(FusedHead(head))
            if half:
                self.patches.apply(HiddenStatesIn(self.model, self.dtype))
                self.patches.apply(HalfExperts(self.model))
            if packed := [module for module in self.model.modules() if is_4bit(module)]:
                self.patches.apply(UnpackByKernel(packed))
            if packed_experts(self.model):
                self.patches.apply(PackedExperts(self.model, by_kernel=False))
        if not half:
            return False
        problem: Exception | None = None
        for attention in (VarlenAttention(self.model), FlexAttention(self.model)):
            self.patches.apply(attention)
            try:
                self.passes(compiled=self.algo.torch_compile != "none").memories()
                return True
            except Exception as error:
                # Models that compute their attention themselves can't take FlexAttention's masks.
                if not isinstance(error, UnsuitedError) and problem is None:
                    raise
                problem = problem or error
            self.patches.undo(attention)
            self._passes.clear()
        self.lines.append(f"attention is the model's own: {first_line(problem) if problem else ''}")
        return False

    def passes(self, compiled: bool, gathered_dtype: torch.dtype | None = None) -> Passes:
        """The passes of the model, with its layers compiled or not, and its weights as they are or as FSDP2 gathers them."""
        key = (compiled, gathered_dtype)
        if key not in self._passes:
            self._passes[key] = Passes(
                self.model,
                self.planned.mode,
                self.patches,
                self.layers,
                self.loss,
                packed=True,
                is_compiled=compiled,
                autocast=lambda: autocast_as_on_gpu(self.dtype),
                gathered_dtype=gathered_dtype,
            )
        return self._passes[key]

    def plan(
        self,
        cfg: RunConfig,
        gpu: Gpu,
        world: int,
        longest: int,
        loads: Sequence[float],
        num_tokens: float = math.inf,
        loss_share: float = 1.0,
    ) -> MemoryPlan:
        """Predict the memory of one GPU, and the layout.

        Args:
            cfg: the config of the run, whose launch options may differ from those that the model was built with.
            gpu: the kind of the GPUs.
            world: number of GPUs.
            longest: tokens of the longest sample.
            loads: tokens of a process in a step, for some steps.
            num_tokens: of the whole training: layers of short runs are not compiled.
            loss_share: share of the tokens that have a loss.

        Raises:
            ConfigError: the options do not fit.
        """
        memory_bytes = int(bound_of(gpu.memory_bytes, cfg.launch.gpu_memory_gb))
        for_torch = bound_for_torch(gpu.memory_bytes, cfg.launch.gpu_memory_gb, world)
        strategy, _ = self.planned.load.strategy(cfg, max(1.0, for_torch), world)
        shards = strategy.num_state_shards(world) if world > 1 else 1
        gathered = gathered_by(self.model, self.layers, strategy.name if world > 1 else "ddp", world, self.dtype)
        compiled, _ = choose_compile(cfg.algo.torch_compile, self._of_text, num_tokens, torch.device("cuda"))
        passes, self._loss_share = self.passes(compiled, gathered.dtype), loss_share
        external = self.planned.recipe.kernels is not None

        weights = weights_parts(self.model, world if gathered.shards_weights else 1, gathered.replicated)
        weights += [Part(name, num, why) for name, num, why in self._of_reparametrization()]
        context = [Part("CUDA context", CONTEXT, "the driver, and the code of kernels", in_torch=False)]
        if world > 1:
            context.append(Part("NCCL", NCCL, "its buffers", in_torch=False))
        workspace = 2 * (WORKSPACE_HOPPER if gpu.compute_capability[0] >= 9 else WORKSPACE)
        context.append(Part("workspace of cuBLAS", workspace, "torch's default, forward and backward"))
        free = memory_bytes - sum(part.num_bytes for part in (*weights, *context))
        cautious = cfg.algo.deterministic or external or not strategy.recovers_memory
        room = room_left(free, self.trained, shards, cautious)
        requested = requested_max_tokens(cfg.algo, longest)
        most, cost = limits(self.variable_length, strategy.shards_weights)
        used_loads = loads if (cost and not requested) or (requested and not cautious) else ()
        budget = _Budget(room, longest, most, requested, used_loads, cost)

        memory = self._pass_memory(passes, cfg.algo.gradient_checkpointing, budget, gathered)
        offload = cfg.algo.activation_offload == "all"
        tiled_from, offloaded = self._tiles(strategy.shards_weights, compiled)
        choice, fits_longest = budget.choose(memory), memory.checkpointed.tokens(room)
        if requested and cfg.algo.gradient_checkpointing != AUTO:
            choice = requested, len(self.layers) if cfg.algo.gradient_checkpointing == "all" else 0
        if cfg.algo.activation_offload == AUTO and cfg.algo.gradient_checkpointing != "none" and not external:
            offload = choice is None
            if not cautious and wants_offload(choice, longest, most, requested, lambda: loads):
                line = self._offloaded_line(passes, requested, tiled_from)
                more_room = room_left(free + offloaded, self.trained, shards, cautious)
                fitting = choose_offloaded(line, more_room, longest, most, requested)
                if fitting is not None and fitting > (choice or (0, 0))[0]:
                    choice, offload = (fitting, len(self.layers)), True
                if offload:
                    room, fits_longest = more_room, line.tokens(more_room)
        max_tokens, num_checkpointed = choice or (requested or longest, memory.num_layers)
        tokens = max(longest, min(max_tokens, largest_micro_batch(loads, max_tokens) if loads else max_tokens))
        several = any(load > max_tokens for load in loads) or not loads

        if offload and offloaded:
            weights.append(Part("embedding in CPU memory", -offloaded, "algo.activation_offload moves a frozen one there"))
        # Adapters beside sharded weights are whole on each process.
        if gathered.shares is not None and not gathered.shares.root.reduced:
            shards = 1
        gradients = gradients_part(self.trained, shards)
        optimizer = optimizer_part(cfg.algo, self.trained, shards)
        way = (tokens, num_checkpointed, several, offload, tiled_from if offload else None)
        found = passes.run(*way, gathered.shares, loss_share)
        held = found.peak - passes.run(*way, None, loss_share).peak if gathered.shares is not None else 0
        new = 0 if several else gradients.num_bytes
        working = max(found.peak, new + gathered.summed) + gathered.num_bytes
        rest = max(0, working - new)
        held = max(0, min(held, rest))
        kept = min(found.layers, rest - held)
        words = (
            f"{tokens:,} tokens in {len(self.layers) - num_checkpointed} layers, and the inputs of {num_checkpointed} others"
        )
        parts = [*weights, gradients, optimizer, *context]
        parts += [
            Part("kept for the backward pass", kept, words),
            *gathered.parts,
            Part("gathered weights, gradients on their way", held, "FSDP2: of the layer at work and of its neighbors"),
            Part("at work", max(0, rest - kept - held - gathered.num_bytes), "the layer and the output layer that are at work"),
        ]
        peak = sum(part.num_bytes for part in parts)
        missing = max(0, peak - memory_bytes)
        line = memory.with_checkpointed(num_checkpointed)
        return MemoryPlan(
            parts=tuple(part for part in parts if part.num_bytes),
            max_tokens=max_tokens,
            num_layers=len(self.layers),
            num_checkpointed=num_checkpointed,
            offload=offload,
            tiles=offload and tiled_from is not None and tokens >= tiled_from,
            strategy="split" if cfg.launch.strategy == "split" else strategy.name,
            world=world,
            compiled=compiled,
            fits=not missing and (choice is not None or offload),
            missing_bytes=missing,
            room_bytes=int(room),
            memory_bytes=int(memory_bytes),
            plain=(memory.plain.per_token, memory.plain.fixed),
            checkpointed=(memory.checkpointed.per_token, memory.checkpointed.fixed),
            num_parameters=self.num_parameters,
            num_trained=sum(p.numel() for p in self.trained),
            longest_that_fits=fits_longest,
            tokens_at_peak=tokens,
            per_token=line.per_token,
            lines=(*self.lines, *self.planned.said),
        )

    @property
    def _of_text(self) -> int:
        return sum(_numel(p) for p in self.model.parameters() if id(p) not in self._outside)

    def _of_reparametrization(self) -> list[tuple[str, int, str]]:
        found = self.planned.recipe.reparametrization
        return [] if found is None else found.memory()

    def _pass_memory(self, passes: Passes, checkpointing: str, budget: _Budget, gathered: Gathered) -> PassMemory:
        """What a run's measured passes would give: of two sizes, without activation checkpointing and with all layers."""
        tokens = max(2, min(budget.requested or ENOUGH_TOKENS, ENOUGH_TOKENS))

        def line(num_checkpointed: int) -> Line:
            key = (id(passes), tokens, num_checkpointed, gathered.shares, self._loss_share)
            if key not in self._lines:
                sizes = (tokens // 2, tokens)
                run = partial(passes.run, num_checkpointed=num_checkpointed, shares=gathered.shares)
                points = [(n, run(n, loss_share=self._loss_share).peak) for n in sizes]
                self._lines[key] = Line.through([(n, float(peak)) for n, peak in points])
            found = self._lines[key]
            return Line(found.per_token, found.fixed + gathered.num_bytes)

        plain = line(0)
        without = PassMemory(plain, plain, 0)
        fits = checkpointing != "all" and plain.per_token * tokens <= budget.room
        enough = fits and (budget.choose(without) or (0, 0))[0] >= (budget.requested or budget.most)
        checkpointed = None if checkpointing == "none" or enough else line(len(self.layers))
        return pass_memory(checkpointing, plain, checkpointed, len(self.layers), fits)

    def _offloaded_line(self, passes: Passes, requested: int | None, tiled_from: int | None) -> Line:
        """What a run's measured passes would give with all layers checkpointed and their inputs in CPU memory."""
        tokens = max(2, min(requested or ENOUGH_TOKENS, ENOUGH_TOKENS))
        key = (id(passes), tokens, "offloaded", self._loss_share)
        if key not in self._lines:
            sizes = (tokens // 2, tokens)
            run = partial(passes.run, num_checkpointed=len(self.layers), offloads=True, tiled_from=tiled_from)
            points = [(n, run(n, loss_share=self._loss_share).peak) for n in sizes]
            self._lines[key] = Line.through([(n, float(peak)) for n, peak in points])
        return self._lines[key]

    def _tiles(self, shards_weights: bool, compiled: bool) -> tuple[int | None, int]:
        """With offload: the tokens from which on MLPs are tiled, and the bytes of the embedding that goes to CPU memory.

        Only MLPs of compiled layers are tiled.
        """
        base = base_of(self.model)
        weight, head = input_embeddings(base).weight, base.get_output_embeddings()
        tied = head is not None and getattr(head, "weight", None) is weight
        plain = type(input_embeddings(base)) is torch.nn.Embedding
        offloaded = size_of(weight) if plain and not (shards_weights or tied or weight.requires_grad) else 0
        width = getattr(text_config(self.model), "intermediate_size", None)
        tiled = tiles_from(offloaded, width, self.dtype.itemsize) if isinstance(width, int) else MIN_TOKENS
        return tiled if compiled else None, offloaded


def _numel(parameter: torch.nn.Parameter) -> int:
    """Numbers of a parameter: two in each byte of a weight in 4 bits."""
    return 2 * parameter.numel() if getattr(parameter, "quant_state", None) is not None else parameter.numel()
