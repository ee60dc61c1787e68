"""The report of a study: one HTML file with the table, and for each method the accuracy on each task after each task."""

import statistics
from collections.abc import Sequence

from hub.tasks.continual.job import Job
from hub.tasks.continual.study import Study
from hub.tasks.report.markup import Html, Table, section, table, tag

WIDTH, HEIGHT, LEFT, BOTTOM = 360, 200, 34, 24
COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f")
STYLE = (
    "body{font:15px system-ui,sans-serif;margin:2em auto;max-width:70em;padding:0 1em}table{border-collapse:collapse}"
    "td,th{padding:.2em .7em;border-bottom:1px solid #ccc;text-align:left}figure{display:inline-block;margin:1em}"
    "svg text{font-size:11px;fill:#555}.key{display:inline-block;width:1em;height:.3em;margin:0 .3em 0 .8em}"
)


def page(study: Study, jobs: Sequence[Job], before: Job, head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """The whole page.

    Args:
        study: what all runs share.
        jobs: the runs. Those that have begun are shown.
        before: the measurement before any training.
        head: of the table.
        cells: of the table.
    """
    methods = list(dict.fromkeys(job.method for job in jobs))
    charts = [_chart(study, method, [job for job in jobs if job.method == method], before) for method in methods]
    about = f"{len(study.tasks)} tasks, at most {study.rows} rows of each, {study.test_rows} test rows. {study.model['path']}"
    body = tag(
        "body",
        tag("h1", "Learning tasks one after another"),
        tag("p", about),
        section("table", "Figures", table(Table(head, cells, frozenset(range(1, len(head)))))),
        section("curves", "Accuracy on each task, after each task", *charts),
    )
    style = tag("style", Html(STYLE))
    head_ = tag("head", Html('<meta charset="utf-8">'), tag("title", "hub continual"), style)
    return f"<!doctype html>\n{tag('html', head_, body, lang='en')}\n"


def _chart(study: Study, method: str, jobs: Sequence[Job], before: Job) -> Html:
    """The curve of each task: means over the seeds, in the order of learning of each."""
    states = [job.state for job in jobs if job.state.get("measured")]
    base = before.state["measured"][0]["right"] if before.is_done else None
    lines, keys = [], []
    for place, task in enumerate(study.tasks):
        color = COLORS[place % len(COLORS)]
        points = [] if base is None else [(0, base[task])]
        for step in range(len(study.tasks)):
            values = [state["measured"][step]["right"][task] for state in states if len(state["measured"]) > step]
            if values:
                points.append((step + 1, statistics.mean(values)))
        where = " ".join(f"{_x(step, len(study.tasks)):.1f},{_y(value):.1f}" for step, value in points)
        lines.append(tag("polyline", points=where, fill="none", stroke=color, stroke_width=2))
        keys += [tag("i", class_="key", style=f"background:{color}"), task]
    ticks = [tag("text", f"{value:g}", x=2, y=f"{_y(value) + 4:.1f}") for value in (0, 0.5, 1)]
    grid = [
        tag("line", x1=LEFT, x2=WIDTH, y1=f"{_y(v):.1f}", y2=f"{_y(v):.1f}", stroke="#ddd") for v in (0, 0.25, 0.5, 0.75, 1)
    ]
    steps = [
        tag("text", str(step), x=f"{_x(step, len(study.tasks)) - 3:.1f}", y=HEIGHT - 6) for step in range(len(study.tasks) + 1)
    ]
    picture = tag("svg", *grid, *ticks, *steps, *lines, viewBox=f"0 0 {WIDTH} {HEIGHT}", width=WIDTH, role="img")
    return tag("figure", tag("figcaption", tag("strong", method)), picture, tag("div", *keys))


def _x(step: int, num_tasks: int) -> float:
    return LEFT + (WIDTH - LEFT - 10) * step / num_tasks


def _y(value: float) -> float:
    return 8 + (HEIGHT - 8 - BOTTOM) * (1 - value)
