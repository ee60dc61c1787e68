"""What a compiled layer keeps and takes: from the graphs that torch's partitioner makes of it, without compiling anything.

`torch.compile` traces a layer's forward and backward pass into one graph and cuts it in two: what crosses the cut is saved.
Inductor fuses elementwise operations into one kernel, so that what lies between them is never in memory. Both are followed
here: the very partitioner cuts, and a tensor counts only if a product, attention, or the end of a graph needs it whole.
"""

import copy
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from hub.plan.inductor import layer_memory
from hub.plan.sizes import Events, LayerMemory, Size, total

FUSED = (
    "prims.convert_element_type", "prims.iota", "aten.cat", "aten.index", "aten.embedding", "aten.gather", "aten.full",
    "aten.constant_pad_nd", "aten.slice_scatter", "aten.select_scatter", "aten.arange", "aten.empty", "aten.clone",
    "aten.scalar_tensor", "aten.where", "aten._to_copy", "aten.full_like", "aten.zeros_like", "aten.ones_like", "aten.copy",
    "aten.sum", "aten.mean", "aten.amax", "aten.amin", "aten.any", "aten.var_mean", "aten.max", "aten.min", "aten.prod",
)  # fmt: skip
"""Operators that Inductor fuses and torch does not tag as elementwise: copies, indices, reductions."""


class Compiled:
    """What a compiled layer takes. Each is found out when it is asked for, within the layer's FakeTensorMode.

    Args:
        joint: the layer's two passes in one graph.
        inputs: of it.
        num_weights: of the inputs.
        scratch: as for `compiled`.
    """

    def __init__(
        self, joint: GraphModule, inputs: Sequence[torch.Tensor], num_weights: int, scratch: Callable[[Node], int]
    ) -> None:
        self._joint, self._inputs, self._num_weights, self._scratch = joint, inputs, num_weights, scratch

    @cached_property
    def plain(self) -> LayerMemory:
        """Without activation checkpointing."""
        return self._of(recompute=False)

    @cached_property
    def checkpointed(self) -> LayerMemory:
        """With it."""
        return self._of(recompute=True)

    def _of(self, recompute: bool) -> LayerMemory:
        return _memory(*_cut(self._joint, self._inputs, self._num_weights, recompute), self._scratch)


def compiled(
    function: Callable[..., tuple[torch.Tensor, ...]],
    inputs: Sequence[torch.Tensor],
    num_weights: int,
    scratch: Callable[[Node], int] = lambda node: 0,
) -> Compiled:
    """Trace a layer, to tell what it takes compiled.

    Args:
        function: of the inputs. Returns the layer's outputs.
        inputs: fake tensors: weights first, then the layer's input, then what all layers share.
        num_weights: of the inputs.
        scratch: bytes that an operator's kernel takes for itself while it runs.
    """
    from torch._functorch.aot_autograd import aot_export_joint_simple
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.fx_passes.joint_graph import joint_graph_passes

    table = select_decomp_table()
    joint: Any = aot_export_joint_simple(function, tuple(inputs), trace_joint=True, decompositions=table)
    for node in joint.graph.find_nodes(op="call_function", target=torch.ops.aten._assert_tensor_metadata.default):
        joint.graph.erase_node(node)  # of exports only: a run's graph has none, and its partitioner would take them for users
    return Compiled(joint_graph_passes(joint), inputs, num_weights, scratch)


def _memory(forward: GraphModule, backward: GraphModule, scratch: Callable[[Node], int]) -> LayerMemory:
    """What a layer takes, by Inductor's own fusion. If this torch's Inductor has other parts: by `memory_of`."""
    try:
        return layer_memory(copy.deepcopy(forward), copy.deepcopy(backward), scratch)
    except Exception:  # these are parts of torch that may change in any version
        return memory_of(forward.graph, backward.graph, scratch)


def _cut(
    joint: GraphModule, inputs: Sequence[torch.Tensor], num_weights: int, recompute: bool
) -> tuple[GraphModule, GraphModule]:
    """Cut a joint graph as torch.compile does. With `recompute` all of the forward pass is computed again."""
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch.utils.checkpoint import CheckpointPolicy

    after_tangents: set[Node] = set()
    for node in joint.graph.nodes:
        node.meta.pop("recompute", None)
        node.meta.pop("ac_graph_id", None)
        is_tangent = node.op == "placeholder" and "tangents" in str(node.target)
        if is_tangent or any(before in after_tangents for before in node.all_input_nodes):
            after_tangents.add(node)
        elif recompute and node.op == "call_function":
            node.meta["recompute"], node.meta["ac_graph_id"] = CheckpointPolicy.MUST_RECOMPUTE, 0
    return min_cut_rematerialization_partition(
        joint, list(inputs), compiler="inductor", num_fwd_outputs=1, static_lifetime_input_indices=list(range(num_weights))
    )


@dataclass(frozen=True)
class _Buffer:
    """Memory of one tensor, or of several that are views of each other."""

    name: str
    num_bytes: int = field(compare=False)


class _Buffers:
    """The buffers that the nodes of a graph make and read."""

    def __init__(self, graph: Graph, known: "dict[str, list[_Buffer]]") -> None:
        """Args:
        graph: forward or backward.
        known: of the nodes' names in the forward graph, of which the backward graph's inputs are.
        """
        self.of: dict[Node, list[_Buffer]] = {}
        self.made_by: dict[_Buffer, Node] = {}
        self._fill(graph, known, {node for node in graph.nodes if _is_same_type(node)})
        if copies := {node for node in graph.nodes if _is_same_type(node)}:
            # Inductor drops a conversion to the same type, unless two results, or a result and an input, would be one tensor.
            there = {b for node, found in self.of.items() if node.op == "placeholder" for b in found}
            results = {b for found in self.results(graph) for b in found}
            copies = {n for n in copies if self.of[n][0] in results and self.of[n.all_input_nodes[0]][0] in results | there}
            self.of, self.made_by = {}, {}
            self._fill(graph, known, copies)

    def _fill(self, graph: Graph, known: "dict[str, list[_Buffer]]", copies: set[Node]) -> None:
        for node in graph.nodes:
            if node.op in ("placeholder", "get_attr") and node.name in known:
                self.of[node] = known[node.name]
            elif node.op == "call_function" and node.target is operator.getitem:
                buffers = self.of[node.args[0]]
                self.of[node] = [buffers[node.args[1]]] if len(buffers) > node.args[1] else []
            elif node.op == "call_function" and node not in copies and (_is_same_type(node) or _is_view(node)):
                self.of[node] = list(self.of[node.all_input_nodes[0]])
            elif node.op != "output":
                tensors = _tensors(node)
                self.of[node] = [
                    _Buffer(f"{id(graph)}/{node.name}/{i}", tensor.numel() * tensor.element_size())
                    for i, tensor in enumerate(tensors)
                ]
                if node.op == "call_function":
                    self.made_by |= dict.fromkeys(self.of[node], node)

    def results(self, graph: Graph) -> list[list[_Buffer]]:
        """The buffers of each of a graph's results."""
        values: Any = graph.output_node().args[0]
        return [self.of[value] if isinstance(value, Node) else [] for value in values]


def _is_same_type(node: Node) -> bool:
    """Whether a node converts to the type that its input has already."""
    if node.target is not torch.ops.prims.convert_element_type.default:
        return False
    return bool(_tensors(node.all_input_nodes[0])[0].dtype == node.args[1])


def _is_view(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(a.alias_info is not None and not a.alias_info.is_write for a in schema.arguments)


def _tensors(node: Node) -> list[torch.Tensor]:
    value = node.meta.get("val")
    values = value if isinstance(value, tuple | list) else (value,)
    return [tensor for tensor in values if isinstance(tensor, torch.Tensor)]


def _is_fused(node: Node) -> bool:
    """Whether Inductor makes a node part of a kernel with others."""
    if torch.Tag.pointwise in getattr(node.target, "tags", ()):
        return True
    return str(node.target).rpartition(".")[0] in FUSED


def memory_of(forward: Graph, backward: Graph, scratch: Callable[[Node], int]) -> LayerMemory:
    """What a layer takes whose passes are these graphs."""
    first = _Buffers(forward, {})
    results = first.results(forward)
    given = {buffer for node, buffers in first.of.items() if node.op in ("placeholder", "get_attr") for buffer in buffers}
    output = dict.fromkeys(results[0])
    saved = {buffer for buffers in results[1:] for buffer in buffers} - given
    known = {node.name: buffers for node, buffers in first.of.items()}
    second = _Buffers(backward, known)
    given |= {b for node, buffers in second.of.items() if node.op in ("placeholder", "get_attr") for b in buffers} - saved
    return LayerMemory(
        forward=_events(forward, first, given, set(), scratch),
        backward=_events(backward, second, given | set(output), saved - set(output), scratch),
        output=total(Size.of(buffer.num_bytes) for buffer in output),
    )


def _events(
    graph: Graph, buffers: _Buffers, given: set[_Buffer], saved: set[_Buffer], scratch: Callable[[Node], int]
) -> Events:
    """Run through a graph, and record what is allocated and freed.

    Args:
        graph: forward or backward.
        buffers: of its nodes.
        given: buffers that are there and stay.
        saved: buffers that are there at first, and are freed when nothing needs them any more.
        scratch: bytes that a node takes for itself.
    """
    steps = [node for node in graph.nodes if node.op == "call_function" and node in set(buffers.made_by.values())]
    results = {buffer for found in buffers.results(graph) for buffer in found}
    whole = set(results)
    for node in steps:
        if not _is_fused(node):
            whole |= {buffer for before in node.all_input_nodes for buffer in buffers.of[before]}
    virtual = {buffer for buffer, node in buffers.made_by.items() if buffer not in whole and _is_fused(node)}
    reads: dict[Node, set[_Buffer]] = {}
    last: dict[_Buffer, int] = {}
    for number, node in enumerate(steps):
        read: set[_Buffer] = set()
        for before in node.all_input_nodes:
            for buffer in buffers.of[before]:
                read |= reads[buffers.made_by[buffer]] if buffer in virtual else {buffer}
        reads[node] = read
        if buffers.of[node] and any(buffer not in virtual for buffer in buffers.of[node]):
            last |= dict.fromkeys(read, number)
    stays = results | (given - saved)
    changes = [-Size.of(buffer.num_bytes) for buffer in saved if buffer not in last and buffer not in results]
    ends: dict[int, list[_Buffer]] = {}
    for buffer, number in last.items():
        if buffer not in stays:
            ends.setdefault(number, []).append(buffer)
    for number, node in enumerate(steps):
        new = [buffer for buffer in buffers.of[node] if buffer not in virtual]
        if extra := scratch(node):
            changes += [Size.of(extra), -Size.of(extra)]
        dying = ends.get(number, [])
        if _is_fused(node):  # a kernel writes its result in place of what nothing needs any more
            for buffer in new:
                match = next((other for other in dying if other.num_bytes == buffer.num_bytes), None)
                if match is not None:
                    dying.remove(match)
                    changes.append(-Size.of(match.num_bytes))
                changes.append(Size.of(buffer.num_bytes))
        else:
            changes += [Size.of(buffer.num_bytes) for buffer in new]
        changes += [-Size.of(buffer.num_bytes) for buffer in (*dying, *(b for b in new if b not in last and b not in stays))]
    return Events(changes)
