"""The table of `python -m benchmarks families`."""

from collections.abc import Mapping, Sequence
from typing import Any

HEAD = (
    "preset", "algorithm", "contender", "tokens/s", "ratio", "of peak", "peak GiB", "first step, s", "packed", "attention",
    "experts train", "loss, plain transformers", "remarks",
)  # fmt: skip

SAME = 2e-3
"""Largest relative difference of the first step's loss from plain transformers' that counts as rounding of bfloat16."""

CONVENTION = (
    "tokens/s: without padding, the median over the later half of six steps of 32 rows. ratio: to the fastest peer. "
    "of peak: model FLOPs over the GPU's dense bfloat16 peak, as the run logs it. peak GiB: allocated by torch while training. "
    "first step: seconds from the start of the process to the end of its first step with nothing measured or compiled before, "
    f"then those of a second run. loss: of the first step; it is the same within {SAME:.1%} as what plain transformers says of "
    "each row alone, or the table marks it. Weights are random. In brackets: rows with fewer layers than the model has."
)


def difference(row: Mapping[str, Any]) -> float | None:
    """The relative difference of a row's loss from plain transformers'. None: one of them is missing."""
    loss, plain = row.get("loss"), row.get("plain_loss")
    return None if loss is None or not plain else abs(loss - plain) / plain


def ratio(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The hub's speed over that of the fastest peer on the same row. None: there is no peer."""
    peers = [one.get("tokens_per_second") or 0.0 for one in rows if one["name"] == row["name"] and one["contender"] != "ours"]
    mine = row.get("tokens_per_second")
    return mine / max(peers) if row["contender"] == "ours" and mine and max(peers, default=0.0) else None


def cells(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Format a row."""
    plan, name = row.get("plan") or {}, row["preset"]
    if row.get("layers") != row.get("of_layers"):
        name += f" ({row['layers']} of {row['of_layers']} layers)"
    speed, share, to_peer = row.get("tokens_per_second"), row.get("share_of_peak"), ratio(row, rows)
    seconds = [row.get("first_step_seconds"), row.get("second_first_step_seconds")]
    packed = {True: "yes", False: f"no: {plan.get('packed_because', '')}"}.get(plan.get("packed", ""), "")
    return [
        name,
        row["method"],
        row["title"],
        f"{speed:,.0f}" if speed else "",
        f"{to_peer:.2f}" if to_peer else "",
        f"{share:.1%}" if share else "",
        f"{row['peak_gib']:.1f}" if row.get("peak_gib") else "",
        ", then ".join(f"{value:.0f}" for value in seconds if value),
        packed,
        str(plan.get("attention", "")),
        row.get("experts", ""),
        _losses(row),
        _remarks(row, plan),
    ]


def _losses(row: Mapping[str, Any]) -> str:
    loss, plain, apart = row.get("loss"), row.get("plain_loss"), difference(row)
    if loss is None or apart is None:
        return "" if loss is None else f"{loss:.4f}"
    return f"{loss:.4f}, {plain:.4f}" + ("" if apart <= SAME else f" **differs by {apart:.1%}**")


def _remarks(row: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    words = [row.get("left_out", ""), row.get("failure", ""), row.get("plain_failure", "")]
    if row.get("second_loss") not in (None, row.get("loss")):
        words.append(f"**the second run's first loss is {row['second_loss']:.6f}**")
    if plan.get("layers_recomputed"):
        words.append(f"{plan['layers_recomputed']} of {plan.get('num_layers')} layers checkpointed")
    if plan.get("activation_offload"):
        words.append("activations offloaded")
    if "fused_head" in plan and not plan["fused_head"]:
        words.append(f"no fused head: {plan.get('fused_head_because', '')}")
    return "; ".join(filter(None, words)).replace("|", "/")


def line(words: Sequence[str]) -> str:
    """A line of a table."""
    return f"| {' | '.join(words)} |"


def row_line(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """A row as a line of the table, while it is measured."""
    return line(cells(row, rows))


def markdown(rows: Sequence[Mapping[str, Any]], order: Sequence[str], in_four_bits: Mapping[str, str]) -> str:
    """Return the table, in the order of the presets, and what of it stands for presets that are stored in 4 bits."""
    place = {preset: number for number, preset in enumerate(order)}
    ordered = sorted(rows, key=lambda row: place.get(row["preset"], len(place)))
    stands_for = ", ".join(f"{preset}: {other}" for preset, other in in_four_bits.items())
    gpus = sorted({f"{row.get('gpu') or 'CPU'}, {row.get('date')}" for row in rows})
    notes = [CONVENTION, f"Presets stored in 4 bits have the row qlora_sft of another preset: {stands_for}.", "; ".join(gpus)]
    return "\n".join(
        [line(HEAD), line(["---"] * len(HEAD)), *(line(cells(row, rows)) for row in ordered), *(f"\n{n}" for n in notes)]
    )
