"""Decoder layers compiled once for rows of any length.

By default torch.compile specializes a layer for the lengths that it meets first and compiles another version when they
change. It does so twice, since the first layer's input has no gradient if the embedding is frozen. Here the lengths are
dynamic from the beginning and every input has a gradient: one version serves all layers of a kind and all micro-batches.
`num_compiled` counts.
"""

import logging
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from hub.models.patches import Edits, Patch
from hub.train.kernels.offload import ActivationOffload
from hub.train.kernels.seen_blocks import SeenBlocks
from hub.train.kernels.tiles import TiledMlp

RECOMPILE_LIMIT = 64
"""Versions of one layer's code: of its few kinds, with and without a mask, with one row and with several."""

ATTENTION = ("torch_attn.", "hub.flash4_", "flex_attention")
"""Prefixes of the names of attention's operators (`torch.nn.attention.varlen`, `hub.train.kernels.flash4`, FlexAttention)."""

LONG_ROWS = 4096
"""Tokens of the longest sample from which on attention's result is offloaded rather than computed again: the time of attention
grows with the square of a row's length, that of the copies with the length."""

LENGTHS = r"L\[.*max_length_[qk]'\]"
"""Numbers among a layer's arguments that change with the samples, as dynamo names them (`dynamic_sources`)."""


class CompiledLayers(Patch):
    """Compiles each layer's forward pass in training. In evaluation it runs eagerly: not worth a second version.

    Args:
        layers: a model's decoder layers.
    """

    def __init__(self, layers: list[torch.nn.Module]) -> None:
        self._layers = layers

    def apply(self, edits: Edits) -> None:
        # These belong to the process, not to the model, so they stay when the layers are as they were.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
        known = [name for name in torch.compiler.config.dynamic_sources.split(",") if name]
        torch.compiler.config.dynamic_sources = ",".join(dict.fromkeys([*known, LENGTHS]))
        # It warns of operators that work in place on what is saved, which is at most attention's result.
        logging.getLogger("torch._higher_order_ops.wrap").addFilter(_is_of_use)
        for layer in self._layers:
            plain = layer.forward
            edits.assign(layer, "hub_plain", plain)  # the one place where one compiled function finds it for every layer
            edits.assign(layer, "forward", CompiledForward(layer, plain))

    def report(self, plan: dict[str, object]) -> None:
        plan["compiled"] = True


def _is_of_use(record: logging.LogRecord) -> bool:
    return "context_fn is passed" not in record.getMessage()


def num_compiled() -> int:
    """Count the graphs that were compiled in this process so far. The number stays the same once all versions exist."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


class CompiledForward:
    """A layer's forward pass: compiled in training, eager in evaluation.

    With activation checkpointing the layer runs again within its compiled backward pass, which computes only what the
    gradients need: not the last product of the MLP, which is 27 % of the forward pass in Llama's shapes. With CPU offload the
    MLP is tiled, since memory is short.
    """

    def __init__(self, layer: torch.nn.Module, plain: Callable[..., object]) -> None:
        self._layer, self._plain = layer, plain
        self._compiled, self._checkpointed = torch.compile(plain), torch.compile(_checkpoint)
        self._checkpointed_but_attention = torch.compile(_checkpoint_but_attention)
        self._checkpoints = False
        self._offload: ActivationOffload | None = None

    def checkpoint(self, edits: Edits, offload: ActivationOffload | None) -> None:
        """Save only the layer's input from now on; in CPU memory with `offload`."""
        edits.rely_on(self._layer, "forward")
        edits.assign(self, "_checkpoints", True)
        if offload is not None:
            edits.assign(self, "_offload", offload)
            TiledMlp(self._layer, offload.tiles_from).apply(edits)

    def __call__(self, *args: Any, **kwargs: Any) -> object:
        hidden = args[0] if args else kwargs.get("hidden_states")
        if not self._layer.training:
            return self._plain(*args, **kwargs)
        checkpoints = self._checkpoints and torch.is_grad_enabled()
        if isinstance(hidden, torch.Tensor):
            *sizes, _ = hidden.shape
            if sizes[-1] == 1:
                # torch takes a length of 1 for a constant, which would be one more version
                run = partial(checkpoint, self._plain, use_reentrant=False) if checkpoints else self._plain
                return run(*args, **kwargs)
            if torch.is_grad_enabled() and not hidden.requires_grad:
                hidden.requires_grad_()
            starts = kwargs.get("cu_seq_lens_q")
            _mark_dynamic((args, kwargs), {*sizes, *(() if starts is None else starts.shape)})
        if not checkpoints:
            return self._compiled(*args, **kwargs)
        if self._offload is None:
            return self._checkpointed(self._layer, *args, **kwargs)
        longest = kwargs.get("max_length_q") or (sizes[-1] if isinstance(hidden, torch.Tensor) else 0)
        saves_attention = longest >= LONG_ROWS and self._offload.saves_attention
        run = self._checkpointed_but_attention if saves_attention else self._checkpointed
        with self._offload.around(self._layer, args, kwargs):
            return run(self._layer, *args, **kwargs)


def _checkpoint(layer: torch.nn.Module, *args: Any, **kwargs: Any) -> object:
    """Run a layer of which only the input is saved."""
    return checkpoint(layer.hub_plain, *args, use_reentrant=False, context_fn=_ALL, **kwargs)


def _checkpoint_but_attention(layer: torch.nn.Module, *args: Any, **kwargs: Any) -> object:
    """Run a layer of which the input and attention's result are saved.

    The time of attention grows with the square of a row's length, and CPU memory has the room.
    """
    return checkpoint(layer.hub_plain, *args, use_reentrant=False, context_fn=_BUT_ATTENTION, **kwargs)


def _all(ctx: object, op: object, *args: object, **kwargs: object) -> CheckpointPolicy:
    # Torch 2.11, left to choose, saves the results of operators it does not know, like products with 4-bit weights.
    return CheckpointPolicy.MUST_RECOMPUTE


def _all_but_attention(ctx: object, op: object, *args: object, **kwargs: object) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if str(op).startswith(ATTENTION) else CheckpointPolicy.MUST_RECOMPUTE


_ALL, _BUT_ATTENTION = (partial(create_selective_checkpoint_contexts, policy) for policy in (_all, _all_but_attention))


def _mark_dynamic(value: object, sizes: Collection[int]) -> None:
    """Tell the compiler that these sizes may change, in any of the tensors among a layer's arguments.

    The last dimension of a tensor of three is left out: it holds features, whatever its size. A size of 1 can't be dynamic.
    """
    if isinstance(value, torch.Tensor):
        for dim, size in enumerate(value.shape[:2] if value.ndim == 3 else value.shape):
            if size in sizes and size > 1:
                torch._dynamo.maybe_mark_dynamic(value, dim)
    elif isinstance(value, SeenBlocks):
        value.mark_dynamic()
    elif isinstance(value, dict):
        for part in value.values():
            _mark_dynamic(part, sizes)
    elif isinstance(value, list | tuple):
        for part in value:
            _mark_dynamic(part, sizes)
