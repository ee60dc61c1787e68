"""What a process holds of a sharded model besides its shards: weights that are gathered, gradients that are on their way.

For FSDP2 its own order of steps is followed (`torch.distributed.fsdp._fully_shard`: `FSDPParamGroup`, `foreach_all_gather`,
`foreach_reduce`), with the hub's way of sharding (`hub.parallel.strategy.FullyShard`): what is gathered ahead, what waits for
the next layer before it is freed. A test compares it with FSDP2 itself.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from hub.models.structure import outside_text
from hub.parallel.strategy import layer_classes
from hub.plan.prediction import Part
from hub.plan.static import rounded

BUCKETS = 2 * 5 * 10**8 * 2
"""DeepSpeed's default reduce and all-gather buckets, in 16-bit numbers."""


@dataclass(frozen=True)
class GroupBytes:
    """What FSDP2 takes for the weights of one layer, or for those outside all layers."""

    gathered: int
    """The whole weights, in the type of the arithmetic."""

    cast: int
    """This process's shard in that type. 0: it is gathered as it is stored."""

    reduced: int
    """Their gradients, in the type in which they are summed. 0: nothing trains."""

    own: int
    """This process's part of the summed gradients."""

    kept: int
    """This process's part of the summed gradients, in the dtype of the weights."""


@dataclass(frozen=True)
class Shares:
    """What FSDP2 takes for each layer, and for what is outside of them."""

    layers: tuple[GroupBytes, ...]
    root: GroupBytes


@dataclass(frozen=True)
class Gathered:
    """What sharding takes."""

    shards_weights: bool
    replicated: tuple[torch.nn.Parameter, ...]
    """Weights that each process has whole."""

    parts: tuple[Part, ...]
    """What is there during the whole pass."""

    summed: int = 0
    """Bytes of a bucket of gradients that is summed over the processes after the pass."""

    dtype: torch.dtype | None = None
    """Of the weights as they are gathered, if they are cast for it."""

    shares: Shares | None = None
    """For FSDP2, whose buffers come and go within a pass."""

    @property
    def num_bytes(self) -> int:
        """All parts."""
        return sum(part.num_bytes for part in self.parts)


class Fsdp:
    """Takes and frees memory as FSDP2 does in a forward and a backward pass. To be called within a FakeTensorMode.

    Args:
        shares: bytes of each group.
        with_gradients: whether the sharded gradients are there before, as in every micro-batch but a step's first.
    """

    def __init__(self, shares: Shares, with_gradients: bool) -> None:
        self._groups = [*shares.layers, shares.root]
        self._root = len(shares.layers)
        self._with_gradients = with_gradients
        self._incoming: dict[int, torch.Tensor] = {}
        """What was gathered and not yet copied to its place."""
        self._whole: dict[int, torch.Tensor] = {}
        self._last_incoming: torch.Tensor | None = None
        """In the forward pass: freed once the next layer is copied to its place."""
        self._last_reduced: torch.Tensor | None = None
        """Gradients being summed: freed once the next layer's are there."""
        self._kept: list[torch.Tensor] = []

    @property
    def shards_gradients(self) -> bool:
        """Whether each process keeps a part of the gradients. False: what trains is replicated, beside frozen weights."""
        return bool(self._groups[self._root].reduced)

    def begin_forward(self) -> None:
        """The model's forward pass begins: what is outside the layers is gathered."""
        self.before_forward(self._root)

    def before_forward(self, number: int) -> None:
        """A layer's forward pass begins."""
        self._gather(number)
        self._last_incoming = None
        self._place(number)
        self._last_incoming = self._incoming.pop(number)

    def after_forward(self, number: int) -> None:
        """A layer's forward pass has ended."""
        del self._whole[number]

    def end_forward(self) -> None:
        """The model's forward pass has ended."""
        self._last_incoming = None
        self.after_forward(self._root)

    def begin_backward(self) -> None:
        """The model's backward pass begins."""
        self.before_backward(self._root)

    def before_backward(self, number: int) -> None:
        """A layer's backward pass begins: the one before it is gathered at the same time."""
        self._gather(number)
        self._place(number)
        del self._incoming[number]
        if number:
            self._gather(number - 1)

    def after_backward(self, number: int, gradients: list[torch.Tensor]) -> None:
        """A layer's backward pass has ended.

        Args:
            number: of the layer.
            gradients: of its whole weights, in their order. The list is emptied, and its caller holds no other reference.
        """
        del self._whole[number]
        self._last_reduced = None
        group = self._groups[number]
        if group.reduced:
            reduced = _take(group.reduced)
            last = gradients.pop() if gradients else None  # FSDP2's loop over them holds it for longer
            gradients.clear()
            kept = _take(group.own)
            self._last_reduced = reduced
            if group.kept != group.own:
                kept = _take(group.kept)
            del last
            if not self._with_gradients:
                self._kept.append(kept)

    def end_backward(self, gradients: list[torch.Tensor]) -> None:
        """The model's backward pass has ended. See `after_backward`."""
        self.after_backward(self._root, gradients)
        self._last_reduced = None

    def _gather(self, number: int) -> None:
        if number not in self._incoming:
            cast = _take(self._groups[number].cast)
            self._incoming[number] = _take(self._groups[number].gathered)
            del cast

    def _place(self, number: int) -> None:
        self._whole[number] = _take(self._groups[number].gathered)


def _take(num_bytes: int) -> torch.Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8)


def gathered_by(
    model: torch.nn.Module, layers: list[torch.nn.Module], strategy: str, world: int, dtype: torch.dtype
) -> Gathered:
    """What a strategy takes besides weights, gradients and moments.

    Args:
        model: with tensors of a FakeTensorMode.
        layers: its decoder layers.
        strategy: its name.
        world: processes.
        dtype: of the arithmetic.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if strategy == "ddp" or world == 1:
        return Gathered(False, (), (), _bucket(trained, world))
    if strategy != "fsdp":
        return Gathered(strategy == "zero3", (), (Part("buckets of DeepSpeed", BUCKETS, "its defaults: 5e8 numbers each"),))
    unused = {id(parameter) for parameter in outside_text(model)}
    has_frozen = any(not p.requires_grad and id(p) not in unused for p in model.parameters())
    numbers: Counter[torch.dtype] = Counter()
    for parameter in trained:
        numbers[parameter.dtype] += parameter.numel()
    replicated = trained if has_frozen else [p for p in trained if p.dtype != numbers.most_common(1)[0][0]]
    mixed = dtype if not has_frozen and dtype != torch.float32 else None
    skipped = {id(parameter) for parameter in replicated}
    names = layer_classes(model)
    inside = {id(p) for module in model.modules() if type(module).__name__ in names for p in module.parameters()}

    def group(parameters: Iterable[torch.nn.Parameter]) -> GroupBytes:
        return group_bytes([p for p in parameters if id(p) not in skipped], world, mixed)

    shares = Shares(
        tuple(group(layer.parameters()) for layer in layers), group(p for p in model.parameters() if id(p) not in inside)
    )
    return Gathered(True, tuple(replicated), (), _bucket(replicated, world), mixed, shares)


def group_bytes(parameters: Sequence[torch.nn.Parameter], world: int, dtype: torch.dtype | None) -> GroupBytes:
    """What FSDP2 takes for some weights that are gathered together.

    Args:
        parameters: the weights.
        world: processes.
        dtype: in which they are gathered; their gradients are then summed in float32. None: in their own.
    """
    sizes = [(p, _padded(p, world), dtype.itemsize if dtype else p.element_size()) for p in parameters]
    trained = [(p, numel, 4 if dtype else itemsize) for p, numel, itemsize in sizes if p.requires_grad]
    reduced = sum(numel * itemsize for _, numel, itemsize in trained)
    return GroupBytes(
        gathered=sum(rounded(numel * itemsize) for _, numel, itemsize in sizes),
        cast=rounded(sum(numel * itemsize for _, numel, itemsize in sizes) // world) if dtype else 0,
        reduced=rounded(reduced),
        own=rounded(reduced // world),
        kept=rounded(sum(numel * p.element_size() for p, numel, _ in trained) // world),
    )


def _padded(parameter: torch.nn.Parameter, world: int) -> int:
    """Numbers of a weight whose first dimension is filled up to a multiple of the processes."""
    first = parameter.shape[0] if parameter.ndim else 1
    return parameter.numel() // max(1, first) * (-(-first // world) * world)


def _bucket(replicated: Sequence[torch.nn.Parameter], world: int) -> int:
    """Gradients of weights that each process has whole are summed in buckets of at least float32 (`sum_gradients`)."""
    if world == 1 or not replicated:
        return 0
    sizes = [4 * p.numel() for p in replicated]
    return min(2**28 + max(sizes), sum(sizes))
