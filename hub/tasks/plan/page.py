"""A plan as text: what takes memory, what the run would choose, how long it takes, what to change."""

from collections.abc import Sequence
from typing import Any

from hub.config.option import AUTO
from hub.plan.gpus import gib
from hub.plan.prediction import Part
from hub.tables import as_text


def page(plan: Any) -> str:
    """Return the page of a plan (`hub.tasks.plan.planning.Planned`)."""
    chosen = plan.chosen
    memory, gpu = chosen.memory, chosen.gpu
    number = f"{memory.world} x " if memory.world > 1 else ""
    verdict = (
        "fits"
        if memory.fits
        else f"does not fit: {gib(memory.missing_bytes)} are missing"
        if memory.missing_bytes
        else "does not fit"
    )
    if not plan.asked and memory.fits:
        verdict += ". It is the smallest known GPU that does"
    lines = [
        f"{plan.name} on {plan.cfg.model.path}, {number}{gpu.name} ({gib(memory.memory_bytes)}): {verdict}",
        "",
        f"Memory of {'each' if memory.world > 1 else 'the'} GPU at the peak: {gib(memory.peak_bytes)} "
        f"({gib(memory.torch_bytes)} as torch counts it)",
        *_parts(memory.parts),
        "",
        as_text(list(_choices(plan))),
    ]
    if plan.fixes:
        lines += ["", "What makes it fit, to be added to the command:", *(f"  {fix.line}" for fix in plan.fixes)]
    elif not memory.fits:
        lines += ["", "Nothing that was tried makes it fit on this GPU"]
    if plan.compared:
        lines += ["", *_table(plan.compared)]
    if plan.lines:
        lines += ["", *(f"- {line}" for line in plan.lines)]
    return "\n".join(lines)


def _parts(parts: Sequence[Part]) -> list[str]:
    rows = [(part.name, gib(part.num_bytes), part.because) for part in parts]
    widths = [max(len(row[place]) for row in rows) for place in (0, 1)]
    return [f"  {name:<{widths[0]}}  {size:>{widths[1]}}  {because}" for name, size, because in rows]


def _choices(plan: Any) -> list[tuple[str, str]]:
    memory, speed, cost, work = plan.chosen.memory, plan.chosen.speed, plan.chosen.cost, plan.work
    layers = f"{memory.num_checkpointed} of {memory.num_layers} layers recompute their activations"
    offload = ", their inputs wait in CPU memory" if memory.offload else ""
    rows = [
        ("micro-batches", f"of at most {memory.max_tokens:,} tokens; {layers}{offload}"),
        ("layers", _compiled(plan)),
    ]
    if memory.world > 1:
        rows.append(("strategy", memory.strategy))
    rows.append(
        ("longest sample", f"of {memory.longest_that_fits:,} tokens would fit" if memory.longest_that_fits else "none fits")
    )
    if plan.data is not None:
        rows.append(("data", plan.data.how))
    if work is not None:
        low, middle, high = work.num_tokens
        tokens = f"{_count(middle)} tokens" if low == high else f"{_count(middle)} tokens ({_count(low)} to {_count(high)})"
        rows.append(("steps", f"{work.num_steps:,} of {work.batch_size} samples, {tokens}"))
    if speed is not None:
        rows.append(("tokens/s", f"{_count(speed.low)} to {_count(speed.high)} ({speed.because})"))
    if (first := plan.chosen.first_step) is not None:
        why = f" ({plan.chosen.first_because})" if plan.chosen.first_because else ""
        rows.append(("first step", f"after {_time(first[0])} to {_time(first[2])}{why}"))
    if cost is not None:
        rows.append(("time", f"{_time(cost.total[0])} to {_time(cost.total[2])}"))
        if cost.kilowatt_hours is not None:
            rows.append(("electricity", f"{cost.kilowatt_hours[0]:.2g} to {cost.kilowatt_hours[2]:.2g} kWh at the power limit"))
        if cost.price is not None:
            rows.append(("price", f"{cost.price[0]:.2f} to {cost.price[2]:.2f}"))
    disk = plan.disk
    rows.append(
        (
            "disk",
            f"{gib(disk.total)}: the model {gib(disk.model)}, {disk.num_checkpoints} checkpoints of {gib(disk.checkpoint)}",
        )
    )
    if disk.exports:
        rows[-1] = ("disk", f"{rows[-1][1]}, exports {gib(disk.exports)}")
    return rows


def _compiled(plan: Any) -> str:
    if plan.chosen.memory.compiled:
        return "compiled"
    asked = plan.cfg.algo.torch_compile
    return f"not compiled: {'the run is short' if asked == AUTO else f'algo.torch_compile={asked}'}"


def _table(compared: Sequence[tuple[str, Any]]) -> list[str]:
    """Plans side by side."""
    head = ("", "fits", "peak", "micro-batch", "recomputed", "tokens/s", "time")
    rows = [head]
    problems = []
    for name, found in compared:
        if isinstance(found, str):
            problems.append(f"{name}: {found}")
            continue
        memory, speed, cost = found.memory, found.speed, found.cost
        rows.append((
            name,
            "yes" if memory.fits else "no",
            gib(memory.peak_bytes),
            f"{memory.max_tokens:,}",
            f"{memory.num_checkpointed}/{memory.num_layers}" + (" offloaded" if memory.offload else ""),
            f"{_count(speed.low)} to {_count(speed.high)}" if speed else "",
            f"{_time(cost.total[0])} to {_time(cost.total[2])}" if cost else "",
        ))  # fmt: skip
    widths = [max(len(row[place]) for row in rows) for place in range(len(head))]
    return [
        *("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows),
        *problems,
    ]


def _count(number: float) -> str:
    """A count with two or three digits that mean something."""
    for size, name in ((1e9, " billion"), (1e6, " million")):
        if number >= size:
            return f"{number / size:.3g}{name}"
    return f"{round(number, -2 if number >= 10_000 else -1 if number >= 1000 else 0):,.0f}"


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
