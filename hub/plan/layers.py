"""What each decoder layer of a model takes in a pass. One layer of each kind is run, over tensors without data."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from hub.models.four_bit_tensor import FourBitTensor
from hub.models.patches import Edits, Patch
from hub.plan.graphs import Compiled, compiled
from hub.plan.live import Live
from hub.plan.scratch import scratch_of_call, scratch_of_node
from hub.plan.sharding import Fsdp
from hub.plan.sizes import LayerMemory, Size
from hub.plan.static import size_of
from hub.train.kernels.checkpointing import Checkpointing
from hub.train.kernels.tiles import TiledMlp
from hub.train.kernels.unpack import packed_tensors


@dataclass(frozen=True)
class KindMemory:
    """What layers of one kind take."""

    of_plain: Callable[[], LayerMemory]
    of_checkpointed: Callable[[], LayerMemory]
    of_tiled: Callable[[], LayerMemory]
    result: Any
    """The layer's results: `HIDDEN` in the place of the hidden states."""

    saves_input: bool = True
    """Whether it saves its input itself, without activation checkpointing. Those that run op by op may save a copy alone."""

    @cached_property
    def plain(self) -> LayerMemory:
        """Without activation checkpointing."""
        return self.of_plain()

    @cached_property
    def checkpointed(self) -> LayerMemory:
        """With it. It takes a second to find out, and often nothing asks for it."""
        return self.of_checkpointed()

    @cached_property
    def tiled(self) -> LayerMemory:
        """With it, and with the MLP's tokens tile by tile if the layer is compiled."""
        return self.of_tiled()


Kind = tuple[object, ...]
"""What is alike in layers and calls that take the same memory."""

HIDDEN = object()
"""Stands for the hidden states among a layer's results."""


@dataclass
class LayerMemories(Patch):
    """Finds out what the layers of a model take: applied, a pass of the model runs one layer of each kind.

    Args:
        layers: a model's decoder layers.
        is_compiled: whether they are compiled in training.
        autocast: makes the context of the arithmetic.
    """

    layers: Sequence[torch.nn.Module]
    is_compiled: bool
    autocast: Callable[[], AbstractContextManager[object]]
    kinds: dict[Kind, KindMemory] = field(default_factory=dict)
    kind_of: dict[int, Kind] = field(default_factory=dict)
    """`id` of a layer -> its kind, a key of `kinds`."""

    @cached_property
    def trained(self) -> list[list[torch.nn.Parameter]]:
        """The weights of each layer that train."""
        return [[p for p in layer.parameters() if p.requires_grad] for layer in self.layers]

    def apply(self, edits: Edits) -> None:
        for layer in self.layers:
            edits.assign(layer, "forward", self._measuring(layer, layer.forward))

    def of(self, layer: torch.nn.Module) -> KindMemory:
        """What a layer takes, once a pass has run."""
        return self.kinds[self.kind_of[id(layer)]]

    def _measuring(self, layer: torch.nn.Module, plain: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            # Compiled layers get inputs with a gradient always (`CompiledForward`).
            has_gradient = self.is_compiled or hidden.requires_grad
            key = (kind_of(layer), _shapes(args, kwargs), has_gradient)
            if key not in self.kinds:
                self.kinds[key] = self._measure(layer, plain, args, kwargs)
            self.kind_of[id(layer)] = key
            out = torch.empty_like(hidden)
            out.requires_grad_(has_gradient or any(parameter.requires_grad for parameter in layer.parameters()))
            return results_with(self.kinds[key].result, out)

        return forward

    def _measure(self, layer: torch.nn.Module, plain: Callable[..., Any], args: Any, kwargs: Any) -> KindMemory:
        hidden = args[0] if args else kwargs["hidden_states"]
        with torch.no_grad():
            out = plain(*args, **kwargs)
        leaves = [value for value in tree_leaves(out) if isinstance(value, torch.Tensor)]
        first = next(value for value in leaves if value.shape == hidden.shape)
        result = tree_map(lambda value: HIDDEN if value is first else value, out)
        del out, leaves
        if self.is_compiled:
            graphs = self._graphs(layer, plain, args, kwargs)
            return KindMemory(
                of_plain=lambda: graphs.plain,
                of_checkpointed=lambda: graphs.checkpointed,
                of_tiled=lambda: self._graphs(layer, plain, args, kwargs, tiled=True).checkpointed,
                result=result,
            )
        own, saves_input = self._run(layer, plain, args, kwargs, False)
        checkpointed = self._run(layer, plain, args, kwargs, True)[0]
        return KindMemory(
            of_plain=lambda: own,
            of_checkpointed=lambda: checkpointed,
            of_tiled=lambda: checkpointed,
            result=result,
            saves_input=saves_input,
        )

    def _graphs(
        self, layer: torch.nn.Module, plain: Callable[..., Any], args: Any, kwargs: Any, tiled: bool = False
    ) -> Compiled:
        """Trace a compiled layer, to tell what it takes."""
        # Those of experts in 4 bits are inputs by their parts (`_Packed`).
        parameters = {name: weight for name, weight in layer.named_parameters() if not isinstance(weight, FourBitTensor)}
        named = parameters | dict(layer.named_buffers())
        names, packed = list(named), _Packed(layer)
        weights = [*named.values(), *packed.tensors]
        flat, spec = tree_flatten((args, kwargs))
        places = [i for i, value in enumerate(flat) if isinstance(value, torch.Tensor)]
        hidden = args[0] if args else kwargs["hidden_states"]
        inputs = [torch.empty_like(flat[i]).requires_grad_() if flat[i] is hidden else flat[i].detach() for i in places]

        def function(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            values = list(flat)
            for place, tensor in zip(places, tensors[len(weights) :], strict=True):
                values[place] = tensor
            own_args, own_kwargs = tree_unflatten(values, spec)
            with packed.replaced(tensors[len(names) : len(weights)]), self.autocast():
                out = torch.func.functional_call(layer, dict(zip(names, tensors, strict=False)), own_args, own_kwargs)
            return (next(t for t in tree_leaves(out) if isinstance(t, torch.Tensor) and t.shape == hidden.shape),)

        edits = Edits()
        edits.assign(layer, "forward", plain)
        if tiled:
            TiledMlp(layer, min_tokens=0).apply(edits)
        try:
            return compiled(function, [*weights, *inputs], len(weights), scratch_of_node)
        finally:
            edits.undo()

    def _run(
        self, layer: torch.nn.Module, plain: Callable[..., Any], args: Any, kwargs: Any, checkpointed: bool
    ) -> tuple[LayerMemory, bool]:
        """What a layer takes that is not compiled, and whether it saves its input: its passes are run, op by op."""
        hidden = args[0] if args else kwargs["hidden_states"]
        own = torch.empty_like(hidden).requires_grad_(hidden.requires_grad)
        args, kwargs = tree_map(lambda value: own if value is hidden else value, (args, kwargs))
        edits = Edits()
        edits.assign(layer, "forward", plain)
        if checkpointed:
            Checkpointing([layer]).apply(edits)
        live = Live(scratch_of_call)
        in_full = [weight for weight in layer.parameters() if not isinstance(weight, FourBitTensor)]
        live.known([*in_full, *_Packed(layer).tensors, *layer.buffers(), own])
        live.known(value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor))
        weights = [parameter for parameter in layer.parameters() if parameter.requires_grad]
        before = [parameter.grad for parameter in weights]
        for parameter in weights:
            parameter.grad = None
        saved: set[int] = set()

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            saved.add(tensor.untyped_storage()._cdata)
            return tensor.detach()

        try:
            with live, self.autocast(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                out = layer.forward(*args, **kwargs)
            out = next(t for t in tree_leaves(out) if isinstance(t, torch.Tensor) and t.shape == hidden.shape)
            output = Size.of(out.untyped_storage().nbytes())
            gradient = torch.empty_like(out)
            live.known([gradient])
            forward = live.take_events()
            if out.requires_grad:
                with live:
                    torch.autograd.backward(out, gradient)
            return LayerMemory(forward, live.take_events(), output), own.untyped_storage()._cdata in saved
        finally:
            edits.undo()
            for parameter, gradient_before in zip(weights, before, strict=True):
                parameter.grad = gradient_before


class _Packed:
    """The tensors of 4-bit weights in a layer: no parameters, but inputs of a compiled graph all the same."""

    def __init__(self, layer: torch.nn.Module) -> None:
        self._modules = [module for module in layer.modules() if packed_tensors(module)]
        self.tensors = [tensor for module in self._modules for tensor in packed_tensors(module)]

    @contextmanager
    def replaced(self, tensors: Sequence[torch.Tensor]) -> Iterator[None]:
        """Within it the layers have these tensors."""
        before = [vars(module)["hub_packed"] for module in self._modules]
        left = iter(tensors)
        for module, parts in zip(self._modules, before, strict=True):
            vars(module)["hub_packed"] = tuple(next(left) if isinstance(part, torch.Tensor) else part for part in parts)
        try:
            yield
        finally:
            for module, parts in zip(self._modules, before, strict=True):
                vars(module)["hub_packed"] = parts


class StandIns(Patch):
    """Layers that compute nothing: each takes and keeps the memory that a real one would.

    Args:
        memories: of the layers.
        num_checkpointed: the first layers that use activation checkpointing.
        offloads: whether these save nothing on the GPU, not even their input.
        tiles: whether their MLPs take the tokens tile by tile.
        with_gradients: whether the gradients of the layers' weights are there before.
        fsdp: takes what FSDP2 takes. None: the weights are not sharded by it.
    """

    def __init__(
        self,
        memories: LayerMemories,
        num_checkpointed: int,
        offloads: bool = False,
        tiles: bool = False,
        with_gradients: bool = True,
        fsdp: Fsdp | None = None,
    ) -> None:
        self._tiles = tiles
        self._memories, self._num, self._offloads, self._fsdp = memories, num_checkpointed, offloads, fsdp
        self._with_gradients = with_gradients
        self.gradients: list[torch.Tensor] = []
        """Those of the layers' weights, if they were not there before."""

    def apply(self, edits: Edits) -> None:
        seen: set[int] = set()
        for number, layer in enumerate(self._memories.layers):
            kind, is_checkpointed = self._memories.of(layer), number < self._num
            memory = kind.plain if not is_checkpointed else kind.tiled if self._tiles else kind.checkpointed
            weights = self._memories.trained[number]
            # Layers may share weights, which have one gradient.
            sharded = self._fsdp is not None and self._fsdp.shards_gradients
            kept = [] if self._with_gradients or sharded else [p for p in weights if id(p) not in seen]
            seen |= {id(p) for p in weights}
            work = _Work(
                number=number,
                memory=memory,
                saves_input=is_checkpointed or kind.saves_input,
                offloads=self._offloads and is_checkpointed,
                num_bytes=sum(map(size_of, weights)),
                last_bytes=size_of(weights[-1]) if weights else 0,
                kept_bytes=sum(map(size_of, kept)),
                gradients=self.gradients,
                fsdp=self._fsdp,
            )
            anchor = next(iter(weights), None)
            edits.assign(layer, "forward", _standing_in(kind, work, anchor, self._memories.is_compiled))


@dataclass(frozen=True)
class _Work:
    """What one layer takes in a pass."""

    number: int
    memory: LayerMemory
    saves_input: bool
    offloads: bool
    num_bytes: int
    """Of the gradients of its weights."""

    last_bytes: int
    """Of that of its last weight."""

    kept_bytes: int
    """Of those gradients that stay."""

    gradients: list[torch.Tensor]
    fsdp: Fsdp | None


def _standing_in(kind: KindMemory, work: _Work, anchor: torch.Tensor | None, is_compiled: bool) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        if is_compiled and not hidden.requires_grad:
            hidden.requires_grad_()
        shared = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor) and value is not hidden]
        out = _StandIn.apply(work, hidden, anchor, shared)  # type: ignore[no-untyped-call]  # torch gives it no types
        return results_with(kind.result, out)

    return forward


class _StandIn(torch.autograd.Function):  # type: ignore[misc]
    """The anchor is a weight of the layer, or None: with it there is a backward pass even if the input needs no gradient.
    What the layer shares with others, such as rope's cosines, it saves like its input.

    Gradients of weights are one tensor, not torch's own: of hundreds of adapters these would take most of the time.
    """

    @staticmethod
    def forward(
        ctx: Any, work: _Work, hidden: torch.Tensor, anchor: torch.Tensor | None, shared: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        tokens = hidden.shape[0] * hidden.shape[1]
        if work.fsdp is not None:
            work.fsdp.before_forward(work.number)
        _take(work.memory.forward.peak(tokens), hidden)
        ctx.work, ctx.tokens, ctx.like, ctx.shared = work, tokens, (hidden.shape, hidden.dtype), shared
        ctx.saved = _bytes(work.memory.saved.at(tokens), hidden)
        ctx.hidden = hidden.detach() if work.saves_input and hidden.requires_grad and not work.offloads else None
        out = torch.empty_like(hidden)
        if work.fsdp is not None:
            work.fsdp.after_forward(work.number)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,), work = gradients, ctx.work
        shape, dtype = ctx.like
        if work.fsdp is not None:
            work.fsdp.before_backward(work.number)
        if work.offloads:
            ctx.hidden = gradient.new_empty(shape, dtype=dtype)
        _take(work.memory.backward.peak(ctx.tokens), gradient)
        ctx.saved = ctx.hidden = ctx.shared = None
        of_hidden = gradient.new_empty(shape, dtype=dtype) if ctx.needs_input_grad[1] else None
        if work.fsdp is not None:
            sizes = (work.num_bytes - work.last_bytes, work.last_bytes)
            work.fsdp.after_backward(work.number, [gradient.new_empty(size, dtype=torch.uint8) for size in sizes])
        else:
            _take(work.num_bytes, gradient)
        if work.kept_bytes:
            work.gradients.append(gradient.new_empty(work.kept_bytes, dtype=torch.uint8))
        return None, of_hidden, None, None


def _bytes(number: float, like: torch.Tensor) -> torch.Tensor | None:
    return like.new_empty(int(number), dtype=torch.uint8) if number >= 1 else None


def _take(number: float, like: torch.Tensor) -> None:
    """Take so many bytes for a moment."""
    _bytes(number, like)


def results_with(results: Any, hidden: torch.Tensor) -> Any:
    """A layer's results with these hidden states."""
    return tree_map(lambda value: hidden if value is HIDDEN else value, results)


def kind_of(layer: torch.nn.Module) -> Kind:
    """What is alike in layers that take the same memory: classes, and shapes and types of their tensors."""
    tensors = tuple((name, tuple(p.shape), p.dtype, p.requires_grad) for name, p in layer.named_parameters())
    return type(layer), tensors, tuple(type(module) for module in layer.modules())


def _shapes(args: Any, kwargs: Any) -> Kind:
    """The shapes of a layer's arguments: with a mask or without, with the results of earlier layers or without."""
    return tuple(
        (tuple(value.shape), value.dtype) if isinstance(value, torch.Tensor) else type(value)
        for value in tree_leaves((args, kwargs), is_leaf=lambda value: value is None)
    )
