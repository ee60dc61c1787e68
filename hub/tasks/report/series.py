"""The curves of a report: which there are, and few enough points of each."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from hub.errors import first_line
from hub.tasks.report.record import ODD_VALUES, Record, as_mapping
from hub.train.curves import Numbers, number

MOST_POINTS = 1200
"""Points of one curve in the page. Of more, the lowest and the highest of each bucket are kept."""


@dataclass(frozen=True)
class Series:
    """One curve."""

    label: str
    steps: Numbers
    values: Numbers
    style: str = "line"
    """line, faint, or dots (a line with a dot at each point)."""

    color: int = 0
    """Number of its color."""


@dataclass(frozen=True)
class Chart:
    """Curves that share axes."""

    title: str
    unit: str
    series: Sequence[Series]
    from_zero: bool = False
    """Whether the axis begins at 0."""


def charts_of(record: Record) -> list[Chart]:
    """The charts of one run. Curves without a point are left out."""
    raw, held_out = _column(record, "loss"), Series("held-out loss", *_held_out(record), "dots", 1)
    loss = [Series("training loss", *raw, "faint"), Series("training loss, smoothed", *smoothed(*raw), "line", 0)]
    charts = [
        Chart("Loss", "nats per token", [*loss, held_out]),
        Chart("Held-out loss", "nats per token", [held_out] if len(held_out.values) > 2 else []),
    ]
    charts += [Chart(title, unit, list(_of_preferences(record, named))) for title, unit, named in _PREFERENCES]
    for title, unit, name, zero in _REST:
        charts.append(Chart(title, unit, [Series(title.lower(), *_column(record, name))], zero))
    try:
        charts[2:2] = _measured(record)
    except ODD_VALUES as error:
        record.problems.append(f"evaluation.json: its steps can't be read: {first_line(error)}")
    return [chart for chart in map(_with_points, charts) if chart.series]


_PREFERENCES = (
    ("Rewards", "", {"reward_chosen": "chosen", "reward_rejected": "rejected", "margin": "margin"}),
    (
        "Pairs told apart",
        "fraction",
        {"accuracy": "by reward", "eval_accuracy": "held-out", "eval_likelier": "held-out, likelier"},
    ),
    ("Log-ratio to the reference", "nats per token", {"log_ratio_chosen": "chosen", "log_ratio_rejected": "rejected"}),
    ("Distance to the reference (KL divergence, second order)", "nats per token", {"kl_per_token": "on the answers"}),
    ("Log-probability of an answer", "nats", {"logp_chosen": "chosen", "logp_rejected": "rejected"}),
)
"""Charts of what an objective of preferences logs: title, unit, and the label of each value."""


def _of_preferences(record: Record, named: Mapping[str, str]) -> Iterator[Series]:
    for color, (name, label) in enumerate(named.items()):
        steps, values = _column(record, name)
        if name.startswith("eval_"):
            _, before = _column(record, f"{name}_before")
            steps, values = np.concatenate([np.zeros(len(before)), steps]), np.concatenate([before, values])
        yield Series(label, steps, values, "dots" if name.startswith("eval_") else "line", color)


def _measured(record: Record) -> list[Chart]:
    """What was measured in between (`evaluate.every_steps`): losses in one chart, scores in another."""
    points: dict[tuple[bool, str], list[tuple[float, float]]] = {}
    for entry in record.evaluation.get("steps") or []:
        step = number(as_mapping(entry), "step")
        for row in as_mapping(entry).get("rows") or []:
            one = as_mapping(row)
            value = number(as_mapping((one.get("values") or [None])[0]), "value")
            if math.isfinite(step) and math.isfinite(value):
                name = f"{one.get('set', '')}: {one.get('metric', '')}"
                points.setdefault((one.get("kind") == "loss", name), []).append((step, value))
    charts = []
    for is_loss, title, unit in (
        (True, "Losses measured meanwhile", "nats per token"),
        (False, "Scores measured meanwhile", ""),
    ):
        named = [(name, np.array(sorted(found))) for (kind, name), found in points.items() if kind == is_loss]
        curves = [Series(name, found[:, 0], found[:, 1], "dots", place) for place, (name, found) in enumerate(named)]
        charts.append(Chart(title, unit, curves))
    return charts


def compared(records: Sequence[Record]) -> list[Chart]:
    """The charts of several runs beside each other, with a color for each run."""
    charts = []
    for title, unit, name, zero in (("Training loss, smoothed", "nats per token", "loss", False), *_REST):
        pairs = [(record.name, _column(record, name)) for record in records]
        if name == "loss":
            pairs = [(label, smoothed(*pair)) for label, pair in pairs]
        charts.append(Chart(title, unit, [Series(label, *pair, "line", i) for i, (label, pair) in enumerate(pairs)], zero))
    held_out = [Series(record.name, *_held_out(record), "dots", place) for place, record in enumerate(records)]
    charts.insert(1, Chart("Held-out loss", "nats per token", held_out))
    return [chart for chart in map(_with_points, charts) if chart.series]


_REST = (
    ("Learning rate", "", "learning_rate", True),
    ("Gradient norm", "", "grad_norm", True),
    ("Speed", "tokens/s", "tokens_per_second", True),
    ("Peak memory", "GB", "peak_memory_gb", True),
)


def smoothed(steps: Numbers, values: Numbers) -> tuple[Numbers, Numbers]:
    """The mean of a curve over a window of a fortieth of it, shorter at its ends."""
    width = len(values) // 80
    if width < 1:
        return steps, values
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    half = np.minimum(np.minimum(places, len(values) - 1 - places), width)
    return steps, (sums[places + half + 1] - sums[places - half]) / (2 * half + 1)


def thinned(steps: Numbers, values: Numbers, most: int = MOST_POINTS) -> tuple[Numbers, Numbers]:
    """A curve of at most so many points, with its ends. Each bucket keeps its lowest and its highest point, in order."""
    count = len(values)
    if count <= most:
        return steps, values
    edges = np.linspace(0, count, most // 2).astype(int)
    kept = {0, count - 1}
    for begin, end in pairwise(edges):
        piece = values[begin:end]
        kept |= {int(begin + piece.argmin()), int(begin + piece.argmax())}
    chosen = np.array(sorted(kept))
    return steps[chosen], values[chosen]


def _with_points(chart: Chart) -> Chart:
    series = [one for one in chart.series if len(one.values) >= (1 if one.style == "dots" else 2)]
    if any(one.style == "faint" for one in series) and len(series[0].values) < 80:
        # So few that a smoothed curve would be the same one again.
        series = [Series(series[0].label, series[0].steps, series[0].values, "line", 0), *series[2:]]
    thin = [Series(one.label, *thinned(one.steps, one.values), one.style, one.color) for one in series]
    return Chart(chart.title, chart.unit, thin, chart.from_zero)


def _column(record: Record, name: str) -> tuple[Numbers, Numbers]:
    """A value of all lines that have it, finite ones only."""
    pairs = np.array([(number(line, "step"), number(line, name)) for line in record.lines], dtype=np.float64).reshape(-1, 2)
    pairs = pairs[np.isfinite(pairs).all(axis=1) & (np.abs(pairs) < 1e30).all(axis=1)]
    return pairs[:, 0], pairs[:, 1]


def _held_out(record: Record) -> tuple[Numbers, Numbers]:
    curves = record.curves
    return curves.held_out_steps, curves.held_out
