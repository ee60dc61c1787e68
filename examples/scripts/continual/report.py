"""The results: figures, table and plot."""

import json
import statistics
from pathlib import Path

from continual.figures import figures
from continual.methods import Method
from continual.schedule import Job

COLUMNS = {
    "learned": "average when learned",
    "end": "average at the end",
    "transfer": "backward transfer",
    "text": "rise of text loss",
    "contains": "at the end, containing",
    "transfer_contains": "transfer, containing",
}


def report(methods: list[Method], seeds: list[int], out: Path) -> None:
    """Write table.md and forgetting.png from all completed runs."""
    rows: dict[str, tuple[float, dict[str, list[float]]]] = {}
    for method in methods:
        files = [Job(method, 0.0, seed, out).file for seed in seeds]
        runs = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]
        if runs:
            each = [figures(one) for one in runs]
            rows[method.name] = (runs[0]["learning_rate"], {name: [one[name] for one in each] for name in each[0]})
    lines = [f"| method | learning rate | runs | {' | '.join(COLUMNS.values())} |", "| --- " * (len(COLUMNS) + 3) + "|"]
    for name, (rate, values) in rows.items():
        cells = [spread(values[column]) if column in values else "" for column in COLUMNS]
        lines.append(f"| {name} | {f'{rate:g}' if rate else ''} | {len(values['end'])} | {' | '.join(cells)} |")
    (out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n" + "\n".join(lines))
    picture(rows, out / "forgetting.png")


def spread(values: list[float]) -> str:
    """Format the mean, and the standard deviation over the seeds."""
    mean = f"{statistics.mean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


def picture(rows: dict[str, tuple[float, dict[str, list[float]]]], file: Path) -> None:
    """Plot the accuracy when learned and at the end, and the rise of the loss on general text."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print(f"{file.name} is not written: it needs matplotlib. Type pip install matplotlib")
        return
    trained = {name: values for name, (_, values) in rows.items() if "learned" in values}
    if not trained:
        return
    figure = Figure(figsize=(11, 1.2 + 0.34 * len(trained)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for place, values in enumerate(trained.values()):
        learned, end, text = (statistics.mean(values[name]) for name in ("learned", "end", "text"))
        left.plot([learned, end], [place, place], color="silver", linewidth=3, zorder=1)
        left.scatter(values["end"], [place] * len(values["end"]), color="tab:blue", alpha=0.4, s=12, zorder=2)
        left.scatter([learned], [place], facecolor="white", edgecolor="black", zorder=3, label="" if place else "when learned")
        left.scatter([end], [place], color="tab:blue", zorder=3, label="" if place else "at the end")
        right.barh(place, text, color="tab:orange", height=0.6)
        right.scatter(values["text"], [place] * len(values["text"]), color="black", s=8, zorder=2)
    left.set_yticks(range(len(trained)), list(trained))
    left.invert_yaxis()
    left.set_xlabel("mean accuracy over the tasks")
    left.legend()
    right.set_xlabel("rise of the loss on general text")
    figure.savefig(file, dpi=120)
    print(f"picture: {file}")
