"""Where the time of a step goes, from torch's trace of two steps, and the least that its operations and bytes would take.

Kernels are sorted by their names. The products of the output layer count as matrix products: no name tells them from others.
"""

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.shapes import SHAPES, num_multiplied
from benchmarks.table import BANDWIDTH, line, peak_flops
from benchmarks.works import Work

ELEMENTWISE = "elementwise, norms, reductions"
GROUPS = (
    # Compiled ones first: they are named after the operations around them, too.
    (ELEMENTWISE, r"^triton_(poi|per|red|for)_"),
    ("communication", r"nccl"),
    ("attention", r"flash|fmha|attention|attn"),
    ("quantised weights", r"dequant|kgemm_4bit|quantiz|bitsandbytes"),
    ("optimizer", r"multi_tensor|fused_?adam|adamw|_foreach"),
    ("loss of the output layer", r"cross_entropy|liger|softmax|nll_loss"),
    ("matrix products", r"gemm|nvjet|cutlass|cublas|xmma|scaled_mm|wgmma|addmm|\bmm\b|bmm|matmul|linear"),
    ("copies and fills", r"memcpy|memset|copy|fill"),
    (ELEMENTWISE, r"triton|elementwise|vectorized|reduce|norm|index|cat|gather|scatter|embedding|aten::"),
)
"""Groups by a pattern in the kernel's name; the first that fits."""

REST = "other"
ON_GPU = {"kernel", "gpu_memcpy", "gpu_memset"}

LONGEST = 15
"""Kernels that are named one by one."""

NAME = 80
"""Letters of a kernel's name that are shown: templates make some of a thousand."""


def group_of(name: str) -> str:
    """The group of a kernel."""
    return next((group for group, pattern in GROUPS if re.search(pattern, name, re.IGNORECASE)), REST)


def busy_seconds(spans: list[tuple[float, float]]) -> float:
    """Seconds in which at least one of the spans (begin, end) was at work."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def outermost(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without a GPU: the operations that were not called by another one."""
    found: list[dict[str, Any]] = []
    ends: dict[Any, float] = {}
    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        if event["ts"] >= ends.get(event["tid"], float("-inf")):
            ends[event["tid"]] = event["ts"] + event["dur"]
            found.append(event)
    return found


def measured(trace: Path) -> tuple[dict[str, tuple[float, int]], dict[str, tuple[float, int]], float]:
    """Seconds and number of kernels of each group and of each name, and the seconds in which the device was busy."""
    events = [event for event in json.loads(trace.read_text(encoding="utf-8"))["traceEvents"] if event.get("ph") == "X"]
    kernels = [event for event in events if event.get("cat") in ON_GPU]
    kernels = kernels or outermost([event for event in events if event.get("cat") == "cpu_op"])
    groups: dict[str, tuple[float, int]] = {}
    names: dict[str, tuple[float, int]] = {}
    for event in kernels:
        for found, name in ((groups, group_of(event["name"])), (names, event["name"])):
            seconds, count = found.get(name, (0.0, 0))
            found[name] = (seconds + event["dur"] / 1e6, count + 1)
    return groups, names, busy_seconds([(event["ts"] / 1e6, (event["ts"] + event["dur"]) / 1e6) for event in kernels])


def floor(work: Work, tokens: int, rows: dict[str, float], micro_batches: int, gpu: str, gpus: int) -> dict[str, float]:
    """The least seconds for a step's operations at the GPU's peak and for its bytes at the memory's.

    Args:
        work: what was trained.
        tokens: of the step, on one GPU.
        rows: mean length of a row, and of its square.
        micro_batches: of the step, on one GPU.
        gpu: one that is known.
        gpus: that share the optimizer's work.
    """
    operations, bandwidth = peak_flops(gpu), BANDWIDTH[gpu]
    assert operations is not None
    size = SHAPES[work.shape]
    hidden, intermediate, layers = size["hidden_size"], size["intermediate_size"], size["num_hidden_layers"]
    keys = hidden * size["num_key_value_heads"] // size["num_attention_heads"]
    weights = num_multiplied(work.shape)
    # Two products of half a square each forward, five backward; each has two operations per number.
    attention = 7 * rows["squares"] / rows["tokens"] * tokens * hidden * layers
    # Forward, what lies between products: two norms, rotation, the gate's product, two sums; backward twice as much.
    between = 3 * layers * tokens * 2 * (9 * hidden + 2 * (hidden + keys) + 3 * intermediate)
    weight_bytes = {"full": 2, "lora": 2, "qlora": 0.5}[work.kind]
    # Adam reads weight, gradient and moments in float32, and writes all but the gradient.
    adam = 28 * weights / gpus if work.kind == "full" else 0
    return {
        f"matrix products, {work.flops} operations per token and weight": work.flops * weights * tokens / operations,
        "attention, 7 products per pair of tokens": attention / operations,
        "weights, read in each pass forward and backward, and the optimizer": (
            (2 * weight_bytes * weights * micro_batches + adam) / bandwidth
        ),
        "what lies between the products, read and written once": between / bandwidth,
    }


def report(folder: Path, work: Work, rows_file: Path, gpu: str | None, gpus: int = 1) -> str:
    """Tables: where the time went by group and by kernel, and what it would be at least.

    Args:
        folder: with the hub's run, `profile.json` and `trace.json`.
        work: what was trained.
        rows_file: mean length of a row, and of its square.
        gpu: name of the GPU, None without any.
        gpus: that shared the work. The times are those of the first.
    """
    said = json.loads((folder / "profile.json").read_text(encoding="utf-8"))
    num_steps, wall = len(said["tokens"]), said["seconds"] / len(said["tokens"])
    tokens = sum(said["tokens"]) // num_steps
    groups, names, busy = measured(folder / "trace.json")
    busy /= num_steps
    lines = [line(("group", "ms per step", "of the step", "kernels per step")), line(["---"] * 4)]
    for group, (seconds, count) in sorted(groups.items(), key=lambda item: -item[1][0]):
        share = seconds / num_steps
        lines.append(line((group, f"{1000 * share:.1f}", f"{share / wall:.1%}", f"{count // num_steps:,}")))
    lines.append(line(("idle: no kernel at work", f"{1000 * (wall - busy):.1f}", f"{1 - busy / wall:.1%}", "")))
    lines.append(line(("the step", f"{1000 * wall:.1f}", "", f"{tokens:,} tokens, {tokens / wall:,.0f} per second")))
    lines += ["", line(("the longest kernels", "ms per step", "of the step", "kernels per step")), line(["---"] * 4)]
    for name, (seconds, count) in sorted(names.items(), key=lambda item: -item[1][0])[:LONGEST]:
        share, shown = seconds / num_steps, f"`{name.replace('|', ' ')[:NAME]}`"
        lines.append(line((shown, f"{1000 * share:.1f}", f"{share / wall:.1%}", f"{count // num_steps:,}")))
    if gpu not in BANDWIDTH:
        return "\n".join([*lines, "", f"The peak of {gpu or 'a CPU'} is not known here, so no floor is given."])
    plan = json.loads((folder / "run" / "plan.json").read_text(encoding="utf-8"))
    on_one = tokens // gpus
    micro_batches = -(-on_one // int(plan["max_tokens_per_gpu"]))
    least = floor(work, on_one, json.loads(rows_file.read_text(encoding="utf-8")), micro_batches, gpu, gpus)
    lines += ["", line(("the least that it would take", "ms per step", "of the step")), line(["---"] * 3)]
    lines += [line((name, f"{1000 * seconds:.1f}", f"{seconds / wall:.1%}")) for name, seconds in least.items()]
    return "\n".join(lines)
