"""What a compiled layer's graphs allocate and free: by Inductor's own lowering and fusion, up to where it would write code.

Inductor fuses elementwise operations into kernels, so what lies between them is never in memory, and orders the kernels. Its
lowering and its scheduler are run here over tensors without data. No kernel is generated or compiled.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import GraphModule, Node

from hub.plan.sizes import Events, LayerMemory, Size


@dataclass
class _Step:
    """One kernel, or one operator of a library."""

    made: list[str] = field(default_factory=list)
    read: set[str] = field(default_factory=set)
    is_kernel: bool = False
    """Whether Inductor generates it: it may write a result over an input that nothing needs any more."""

    scratch: int = 0


@dataclass
class _Schedule:
    steps: list[_Step]
    sizes: dict[str, int]
    readers: dict[str, int]
    """Number of operations that read a buffer, before they were fused."""

    outputs: list[str | None]
    """The buffer of each of the graph's results; None: it is no tensor."""


def layer_memory(forward: GraphModule, backward: GraphModule, scratch: Callable[[Node], int]) -> LayerMemory:
    """What a layer takes whose compiled passes are these graphs.

    Args:
        forward: of it. Its results are the layer's output, and what is saved.
        backward: of it.
        scratch: bytes that an operator's kernel takes for itself while it runs.
    """
    results: Any = forward.graph.output_node().args[0]
    names = [node.name if isinstance(node, Node) else "" for node in results]
    first = _schedule(forward, scratch)
    places = dict(zip(names, first.outputs, strict=True))
    given = {node.name for node in forward.graph.find_nodes(op="placeholder")}
    output = first.outputs[0]
    second = _schedule(backward, scratch)
    # Several inputs of the backward pass may be views of one buffer.
    saved: dict[str, str] = {}
    for node in backward.graph.find_nodes(op="placeholder"):
        buffer = places.get(node.name)
        if buffer is not None and buffer not in given and buffer != output:
            saved[node.name] = f"saved {buffer}"
            second.sizes[f"saved {buffer}"] = first.sizes[buffer]
    for name, buffer in saved.items():
        for step in second.steps:
            if name in step.read:
                step.read.add(buffer)
    return LayerMemory(
        forward=_events(first, set()),
        backward=_events(second, set(saved.values())),
        output=Size.of(first.sizes[output]) if output in first.sizes else Size(),
    )


def _schedule(module: GraphModule, scratch: Callable[[Node], int]) -> _Schedule:
    """Lower a graph and fuse its operations."""
    from torch._inductor.compile_fx import _recursive_post_grad_passes
    from torch._inductor.debug import DebugContext
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    inputs = [node.meta["val"] for node in module.graph.find_nodes(op="placeholder")]
    mode = torch._guards.detect_fake_mode(inputs)
    with V.set_fake_mode(mode), DebugContext():
        _recursive_post_grad_passes(module)
        lowering = GraphLowering(module, example_inputs=inputs, shape_env=mode.shape_env if mode is not None else None)
        with V.set_graph_handler(lowering), V.set_extern_kernel_nodes([]):
            lowering.run(*inputs)
            lowering.init_wrapper_code()
            lowering._update_scheduler()
            return _read(lowering, scratch)


def _read(lowering: Any, scratch: Callable[[Node], int]) -> _Schedule:
    from torch._inductor import dependencies, ir

    scheduler = lowering.scheduler
    schedule = _Schedule([], {}, {}, [])
    for node in scheduler.nodes:
        step = _Step(is_kernel=not node.is_extern())
        for part in node.get_nodes():
            for buffer in part.get_outputs():
                layout = buffer.node.layout if buffer.node is not None else None
                if isinstance(layout, ir.Layout) and not isinstance(layout, ir.NoneLayout | ir.MultiOutputLayout):
                    name = buffer.get_name()
                    step.made.append(name)
                    schedule.sizes[name] = _bytes(layout)
            for dependency in part.read_writes.reads:
                if not (isinstance(dependency, dependencies.WeakDep) and getattr(dependency, "is_fake", False)):
                    step.read.add(dependency.name)
                    schedule.readers[dependency.name] = schedule.readers.get(dependency.name, 0) + 1
            if part.node is not None:
                step.scratch += sum(scratch(origin) for origin in part.node.get_origins() if origin.op == "call_function")
        schedule.steps.append(step)
    for result in lowering.graph_outputs:
        is_tensor = not isinstance(result, ir.Constant | ir.NoneAsConstantBuffer | ir.ShapeAsConstantBuffer)
        schedule.outputs.append(result.get_name() if is_tensor else None)
    return schedule


def _bytes(layout: Any) -> int:
    """Bytes of a buffer's storage."""
    size = 1 + sum((int(length) - 1) * int(stride) for length, stride in zip(layout.size, layout.stride, strict=True))
    empty = any(int(length) == 0 for length in layout.size)
    return 0 if empty else size * int(layout.dtype.itemsize)


def _events(schedule: _Schedule, saved: set[str]) -> Events:
    """What is allocated and freed.

    Args:
        schedule: the steps.
        saved: buffers that are there at first, and are freed when nothing needs them any more.
    """
    results = {name for name in schedule.outputs if name is not None}
    sizes = schedule.sizes
    last = {name: number for number, step in enumerate(schedule.steps) for name in step.read}
    changes = [-Size.of(sizes[name]) for name in saved if name not in last and name not in results]
    made: set[str] = set()
    for number, step in enumerate(schedule.steps):
        dying = [n for n in step.read if (n in made or n in saved) and last[n] == number and n not in results]
        dying = [n for n in dying if n not in step.made]
        # What only the kernel itself reads stays in registers.
        inside = [n for n in step.made if step.is_kernel and last.get(n, number) == number and n not in results]
        new = [n for n in step.made if n not in inside]
        if step.scratch:
            changes += [Size.of(step.scratch), -Size.of(step.scratch)]
        reusable = [n for n in dying if step.is_kernel and n in made and schedule.readers[n] == 1]
        for name in new:
            over = next((n for n in reusable if sizes[n] == sizes[name]), None)
            if over is not None:
                reusable.remove(over)
                dying.remove(over)
                changes.append(-Size.of(sizes[over]))
            changes.append(Size.of(sizes[name]))
        changes += [-Size.of(sizes[n]) for n in dying]
        changes += [-Size.of(sizes[n]) for n in new if n not in last and n not in results]
        made |= {n for n in new if n in last or n in results}
    return Events(changes)
