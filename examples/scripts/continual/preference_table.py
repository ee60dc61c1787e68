"""The table of `preference_learning.py`: means and standard errors over the seeds."""

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

COLUMNS = (
    "chosen likelier, before", "after", "margin above 0, after", "log p(chosen), change", "tasks right, before", "after",
    "tasks, change", "containing, change", "rise of text loss",
)  # fmt: skip


def spread(values: Iterable[float]) -> str:
    """Format the mean, and its standard error over the seeds."""
    found = list(values)
    if not found or any(value is None for value in found):
        return ""
    mean = f"{statistics.mean(found):.3f}"
    return f"{mean} ± {statistics.stdev(found) / math.sqrt(len(found)):.3f}" if len(found) > 1 else mean


def cells_of(runs: Sequence[dict[str, Any]], starts: dict[int, dict[str, Any]]) -> list[str]:
    """The cells of a row: runs that differ in their seed only, each beside the start of its seed."""
    begun = [starts[run["seed"]] for run in runs]
    both = list(zip(runs, begun, strict=True))

    def change(name: str) -> str:
        return spread(statistics.mean(run[name]) - statistics.mean(start[name]) for run, start in both)

    moved = [(run["eval_logp_chosen"], run["eval_logp_chosen_before"]) for run in runs]
    return [
        spread(run["eval_likelier_before"] for run in runs),
        spread(run["eval_likelier"] for run in runs),
        spread(run["eval_accuracy"] for run in runs),
        spread(after - before for after, before in moved if after is not None and before is not None),
        spread(statistics.mean(start["strict"]) for start in begun),
        spread(statistics.mean(run["strict"]) for run in runs),
        change("strict"),
        change("containing"),
        spread(run["text_loss"] - start["text_loss"] for run, start in both),
    ]


def table(lines: Sequence[dict[str, Any]]) -> str:
    """The table of all results, as markdown.

    Args:
        lines: the results; of several of one job the last one counts.
    """
    results = {line["job"]: line for line in lines}.values()
    starts = {line["seed"]: line for line in results if line["algo"] is None}
    rows: dict[tuple[str, str, str, float], list[dict[str, Any]]] = {}
    for line in results:
        if line["algo"] is not None and line["seed"] in starts:
            rows.setdefault((line["pairs"], line["loss"], line["algo"], line["rate"]), []).append(line)
    made = [f"| pairs | loss | algo | learning rate | seeds | {' | '.join(COLUMNS)} |", "| --- " * (len(COLUMNS) + 5) + "|"]
    for (pairs, loss, algo, rate), runs in sorted(rows.items()):
        made.append(f"| {pairs} | {loss} | {algo} | {rate:g} | {len(runs)} | {' | '.join(cells_of(runs, starts))} |")
    return "\n".join(made)
