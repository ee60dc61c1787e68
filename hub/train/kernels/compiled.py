"""Decoder layers compiled once for rows of any length.

Left alone, torch.compile makes a version of a layer for the lengths that it meets first and another one when they change, and
does so twice, since the first layer's input has no gradient where the embedding is frozen. Here the lengths are free from the
beginning and every input has a gradient: one version serves all layers of a kind and all micro-batches. `num_compiled` counts.
"""

import logging
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from hub.train.kernels.offload import HostInputs
from hub.train.kernels.tiles import divide

RECOMPILE_LIMIT = 64
"""Versions of one layer's code: of its few kinds, with and without a mask, with one row and with several."""

ATTENTION = ("torch_attn.", "hub.flash4_")
"""What the names of the operators of attention begin with (`torch.nn.attention.varlen`, `hub.train.kernels.flash4`)."""

LONG_ROWS = 4096
"""Tokens of the longest sample from which on attention is kept, on the host, rather than run again: its time grows with the
square of a row's length, that of the copies with the length."""

LENGTHS = r"L\[.*max_length_[qk]'\]"
"""Numbers among a layer's arguments that change with the samples, as dynamo names them (`dynamic_sources`)."""


def compile_layers(layers: list[torch.nn.Module]) -> None:
    """Compile what each layer does in training. In evaluation it runs as it is: not worth a second version."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
    known = [name for name in torch.compiler.config.dynamic_sources.split(",") if name]
    torch.compiler.config.dynamic_sources = ",".join(dict.fromkeys([*known, LENGTHS]))
    # It warns of operators that work in place on what is kept, which is at most what attention gives.
    logging.getLogger("torch._higher_order_ops.wrap").addFilter(_is_of_use)
    for layer in layers:
        layer.forward = CompiledForward(layer)


def _is_of_use(record: logging.LogRecord) -> bool:
    return "context_fn is passed" not in record.getMessage()


def num_compiled() -> int:
    """Graphs that were compiled in this process so far. It stays the same once nothing is compiled any more."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


class CompiledForward:
    """What a layer does in training, compiled. In evaluation it runs as it is.

    A layer that recomputes its activations does so within its compiled backward pass, where only what that needs is computed
    again: not the last product of the MLP, which is 27 % of the forward pass in Llama's shapes. Where what it keeps goes to the
    host, memory is short: the MLP takes its tokens in parts then.
    """

    def __init__(self, layer: torch.nn.Module) -> None:
        self._layer, self._plain = layer, layer.forward
        self._kept, self._again = torch.compile(self._plain), torch.compile(_again)
        layer.hub_plain = self._plain  # where one compiled function finds it for every layer
        self._without_attention = torch.compile(_again_without_attention)
        self._recomputes = False
        self._offload: HostInputs | None = None

    def recompute(self, offload: HostInputs | None) -> Callable[[], None]:
        """Keep only the layer's input from now on; on the host, with `offload`. Returns what undoes it."""
        before = self._recomputes, self._offload
        self._recomputes, self._offload = True, offload
        make_whole = divide(self._layer, offload.divides_from) if offload is not None else lambda: None

        def undo() -> None:
            self._recomputes, self._offload = before
            make_whole()

        return undo

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs.get("hidden_states")
        if not self._layer.training:
            return self._plain(*args, **kwargs)
        again = self._recomputes and torch.is_grad_enabled()
        if isinstance(hidden, torch.Tensor):
            *sizes, _ = hidden.shape
            if sizes[-1] == 1:
                # torch takes a length of 1 for a constant, which would be one more version
                return _again(self._layer, *args, **kwargs) if again else self._plain(*args, **kwargs)
            if torch.is_grad_enabled() and not hidden.requires_grad:
                hidden.requires_grad_()
            starts = kwargs.get("cu_seq_lens_q")
            _free((args, kwargs), {*sizes, *(() if starts is None else starts.shape)})
        if not again:
            return self._kept(*args, **kwargs)
        if self._offload is None:
            return self._again(self._layer, *args, **kwargs)
        longest = kwargs.get("max_length_q") or (sizes[-1] if isinstance(hidden, torch.Tensor) else 0)
        run = self._without_attention if longest >= LONG_ROWS and self._offload.keeps_attention else self._again
        with self._offload.around(self._layer, args, kwargs):
            return run(self._layer, *args, **kwargs)


def _again(layer: Any, *args: Any, **kwargs: Any) -> Any:
    """A layer of which only the input is kept."""
    return checkpoint(layer.hub_plain, *args, use_reentrant=False, context_fn=_ALL, **kwargs)


def _again_without_attention(layer: Any, *args: Any, **kwargs: Any) -> Any:
    """A layer of which the input and the attention's result are kept.

    The time of attention grows with the square of a row's length, and the host has the room.
    """
    return checkpoint(layer.hub_plain, *args, use_reentrant=False, context_fn=_BUT_ATTENTION, **kwargs)


def _all(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    # Torch 2.11 keeps the results of operators it does not know, like products with 4-bit weights, where it is left to choose.
    return CheckpointPolicy.MUST_RECOMPUTE


def _all_but_attention(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if str(op).startswith(ATTENTION) else CheckpointPolicy.MUST_RECOMPUTE


_ALL, _BUT_ATTENTION = (partial(create_selective_checkpoint_contexts, policy) for policy in (_all, _all_but_attention))


def _free(value: Any, sizes: Collection[int]) -> None:
    """Tell the compiler that these sizes may change, wherever they stand in the tensors of a layer's arguments.

    Not in the last dimension of a tensor of three: that holds features, whatever its size. A size of 1 can't be free.
    """
    if isinstance(value, torch.Tensor):
        for dim, size in enumerate(value.shape[:2] if value.ndim == 3 else value.shape):
            if size in sizes and size > 1:
                torch._dynamo.maybe_mark_dynamic(value, dim)
    elif isinstance(value, dict):
        for part in value.values():
            _free(part, sizes)
    elif isinstance(value, list | tuple):
        for part in value:
            _free(part, sizes)
