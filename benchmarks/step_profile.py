"""Profile of a step: the time of its kernels from torch's trace of two steps, and the minimum time of its operations and bytes.

Kernels are grouped by name. The products of the output layer count as matrix products, since they have the same names.
"""

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.shapes import SHAPES, num_multiplied
from benchmarks.table import bandwidth_of, line, peak_flops
from benchmarks.workloads import Workload

ELEMENTWISE = "elementwise, norms, reductions"
GROUPS = (
    # Compiled ones first: their names include those of fused operations.
    (ELEMENTWISE, r"^triton_(poi|per|red|for)_"),
    ("communication", r"nccl"),
    ("attention", r"flash|fmha|attention|attn"),
    ("quantized weights", r"dequant|kgemm_4bit|quantiz|bitsandbytes"),
    ("optimizer", r"multi_tensor|fused_?adam|adamw|_foreach"),
    ("loss of the output layer", r"cross_entropy|liger|softmax|nll_loss"),
    ("matrix products", r"gemm|nvjet|cutlass|cublas|xmma|scaled_mm|wgmma|addmm|\bmm\b|bmm|matmul|linear"),
    ("copies and fills", r"memcpy|memset|copy|fill"),
    (ELEMENTWISE, r"triton|elementwise|vectorized|reduce|norm|index|cat|gather|scatter|embedding|aten::"),
)
"""Groups with a pattern of the kernel's name. The first match counts."""

REST = "other"
ON_GPU = {"kernel", "gpu_memcpy", "gpu_memset"}

LONGEST = 15
"""Number of the longest kernels that are listed one by one."""

NAME = 80
"""Maximum number of characters of a kernel's name in the table: C++ templates have a thousand."""


def group_of(name: str) -> str:
    """Return the group of a kernel."""
    return next((group for group, pattern in GROUPS if re.search(pattern, name, re.IGNORECASE)), REST)


def busy_seconds(spans: list[tuple[float, float]]) -> float:
    """Return the seconds in which at least one of the spans (begin, end) was active."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def outermost(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the operations that no other one called. Used without a GPU."""
    operations: list[dict[str, Any]] = []
    ends: dict[Any, float] = {}
    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        if event["ts"] >= ends.get(event["tid"], float("-inf")):
            ends[event["tid"]] = event["ts"] + event["dur"]
            operations.append(event)
    return operations


def measured(trace: Path) -> tuple[dict[str, tuple[float, int]], dict[str, tuple[float, int]], float]:
    """Return seconds and number of kernels by group and by name, and the seconds in which the device was busy."""
    events = [event for event in json.loads(trace.read_text(encoding="utf-8"))["traceEvents"] if event.get("ph") == "X"]
    kernels = [event for event in events if event.get("cat") in ON_GPU]
    kernels = kernels or outermost([event for event in events if event.get("cat") == "cpu_op"])
    groups: dict[str, tuple[float, int]] = {}
    names: dict[str, tuple[float, int]] = {}
    for event in kernels:
        for totals, name in ((groups, group_of(event["name"])), (names, event["name"])):
            seconds, count = totals.get(name, (0.0, 0))
            totals[name] = (seconds + event["dur"] / 1e6, count + 1)
    return groups, names, busy_seconds([(event["ts"] / 1e6, (event["ts"] + event["dur"]) / 1e6) for event in kernels])


def floor(workload: Workload, tokens: int, rows: dict[str, float], micro_batches: int, gpu: str, gpus: int) -> dict[str, float]:
    """Return the minimum seconds of a step's operations at the GPU's peak, and of its bytes at the memory's bandwidth.

    Args:
        workload: what was trained.
        tokens: tokens of the step on one GPU.
        rows: mean of the rows' lengths, and of their squares.
        micro_batches: micro-batches of the step on one GPU.
        gpu: name of a known GPU.
        gpus: number of GPUs over which the optimizer is sharded.
    """
    operations, bandwidth = peak_flops(gpu), bandwidth_of(gpu)
    assert operations is not None
    size = SHAPES[workload.shape]
    hidden, intermediate, layers = size["hidden_size"], size["intermediate_size"], size["num_hidden_layers"]
    keys = hidden * size["num_key_value_heads"] // size["num_attention_heads"]
    weights = num_multiplied(workload.shape)
    # Two products of half a square each forward, five backward; each has two operations per number.
    attention = 7 * rows["squares"] / rows["tokens"] * tokens * hidden * layers
    # Between the products, forward: two norms, rotation, the gate's product, two sums. Backward twice as much.
    between = 3 * layers * tokens * 2 * (9 * hidden + 2 * (hidden + keys) + 3 * intermediate)
    weight_bytes = {"full": 2, "lora": 2, "qlora": 0.5}[workload.kind]
    # Adam reads weight, gradient and moments in float32, and writes all but the gradient.
    adam = 28 * weights / gpus if workload.kind == "full" else 0
    return {
        f"matrix products, {workload.flops} operations per token and weight": workload.flops * weights * tokens / operations,
        "attention, 7 products per pair of tokens": attention / operations,
        "weights, read in each pass forward and backward, and the optimizer": (
            (2 * weight_bytes * weights * micro_batches + adam) / bandwidth
        ),
        "activations between the products, read and written once": between / bandwidth,
    }


def report(folder: Path, workload: Workload, rows_file: Path, gpu: str | None, gpus: int = 1) -> str:
    """Return tables of the time by group and by kernel, and of the minimum time.

    Args:
        folder: folder with the hub's run, `profile.json` and `trace.json`.
        workload: what was trained.
        rows_file: file with the mean of the rows' lengths, and of their squares.
        gpu: name of the GPU. None: no GPU.
        gpus: number of GPUs. The times are those of the first.
    """
    profile = json.loads((folder / "profile.json").read_text(encoding="utf-8"))
    num_steps, wall = len(profile["tokens"]), profile["seconds"] / len(profile["tokens"])
    tokens = sum(profile["tokens"]) // num_steps
    groups, names, busy = measured(folder / "trace.json")
    busy /= num_steps
    lines = [line(("group", "ms per step", "of the step", "kernels per step")), line(["---"] * 4)]
    for group, (seconds, count) in sorted(groups.items(), key=lambda item: -item[1][0]):
        per_step = seconds / num_steps
        lines.append(line((group, f"{1000 * per_step:.1f}", f"{per_step / wall:.1%}", f"{count // num_steps:,}")))
    lines.append(line(("idle: no kernel running", f"{1000 * (wall - busy):.1f}", f"{1 - busy / wall:.1%}", "")))
    lines.append(line(("the step", f"{1000 * wall:.1f}", "", f"{tokens:,} tokens, {tokens / wall:,.0f} per second")))
    lines += ["", line(("the longest kernels", "ms per step", "of the step", "kernels per step")), line(["---"] * 4)]
    for name, (seconds, count) in sorted(names.items(), key=lambda item: -item[1][0])[:LONGEST]:
        per_step, shown = seconds / num_steps, f"`{name.replace('|', ' ')[:NAME]}`"
        lines.append(line((shown, f"{1000 * per_step:.1f}", f"{per_step / wall:.1%}", f"{count // num_steps:,}")))
    if peak_flops(gpu) is None:
        return "\n".join([*lines, "", f"The peak of {gpu or 'a CPU'} is unknown, so no minimum is given."])
    plan = json.loads((folder / "run" / "plan.json").read_text(encoding="utf-8"))
    tokens_on_one = tokens // gpus
    micro_batches = -(-tokens_on_one // int(plan["max_tokens_per_gpu"]))
    least = floor(workload, tokens_on_one, json.loads(rows_file.read_text(encoding="utf-8")), micro_batches, gpu, gpus)
    lines += ["", line(("minimum time", "ms per step", "of the step")), line(["---"] * 3)]
    lines += [line((name, f"{1000 * seconds:.1f}", f"{seconds / wall:.1%}")) for name, seconds in least.items()]
    return "\n".join(lines)
