"""Charts as SVG. Each is whole without JavaScript; page.js zooms into it and shows values."""

import json
import math
from collections.abc import Iterator, Sequence

import numpy as np

from hub.secrets import without_secrets
from hub.tasks.report.markup import Html, joined, tag, text
from hub.tasks.report.series import Chart, Series

WIDTH, HEIGHT = 400, 220
LEFT, TOP, RIGHT, BOTTOM = 48, 8, 8, 22
SIZE = 1000
"""Width and height of the inner picture, in which the curves are drawn. It is stretched to the axes."""

NUM_COLORS = 8


def figures(charts: Sequence[Chart]) -> list[Html]:
    """Charts that share the axis of the steps."""
    steps = np.concatenate([one.steps for chart in charts for one in chart.series])
    x_from, x_to = float(steps.min()), float(steps.max())
    return [_figure(chart, x_from, x_to if x_to > x_from else x_from + 1) for chart in charts]


def _figure(chart: Chart, x_from: float, x_to: float) -> Html:
    """A chart with its title, its legend and its data for page.js."""
    y_from, y_to = _bounds(chart)
    axes = [*_x_axis(x_from, x_to), *_y_axis(y_from, y_to)]
    curves = [tag("g", _curve(one, x_from, x_to, y_from, y_to), class_="series") for one in chart.series]
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    inner = tag(
        "svg", *curves, class_="plot", x=LEFT, y=TOP, width=width, height=height, viewBox=f"0 0 {SIZE} {SIZE}",
        preserveAspectRatio="none",
    )  # fmt: skip
    frame = tag("rect", x=LEFT, y=TOP, width=width, height=height, class_="frame")
    picture = tag(
        "svg", frame, tag("g", *axes, class_="axes"), inner, tag("g", class_="pointer"), viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img", aria_label=_in_words(chart), class_="chart",
    )  # fmt: skip
    alone = len(chart.series) == 1 and chart.series[0].label.lower() == chart.title.lower()
    keys = [
        tag(
            "button",
            tag("i", class_=f"key {one.style} c{one.color % NUM_COLORS}"),
            one.label,
            type="button",
            class_="legend-item",
        )
        for one in chart.series
        if not alone
    ]
    unit = [tag("span", f" {chart.unit}", class_="unit")] if chart.unit else []
    caption = tag("figcaption", tag("strong", chart.title), *unit, tag("div", *keys, class_="legend"))
    values = tag("output", class_="values", aria_live="polite")
    return tag("figure", caption, picture, values, _data(chart, (x_from, x_to, y_from, y_to)), class_="chart-box")


def _bounds(chart: Chart) -> tuple[float, float]:
    """The ends of the axis of the values, with a small margin."""
    values = np.concatenate([one.values for one in chart.series])
    y_from, y_to = float(values.min()), float(values.max())
    if chart.from_zero:
        y_from = min(0.0, y_from)
    margin = 0.05 * (y_to - y_from) or 0.05 * abs(y_to) or 1.0
    return (y_from if y_from == 0 else y_from - margin), y_to + margin


def ticks(start: float, end: float, count: int = 5) -> list[float]:
    """Round values between two ends, at most about `count`. page.js has the same rule."""
    step = 10 ** math.floor(math.log10((end - start) / count))
    step *= next((factor for factor in (1, 2, 5, 10) if (end - start) / (step * factor) <= count), 10)
    first = math.ceil(start / step - 1e-9)
    return [round(place * step, 12) for place in range(first, math.floor(end / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A number for an axis: 1.5k, 0.25, 2e-5. page.js has the same rule."""
    if value == 0:
        return "0"
    size = abs(value)
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if limit <= size < 1e12:
            return f"{value / (1e3 if unit == 'k' else limit):.3g}{unit}"
    if size < 1e-3 or size >= 1e12:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"


def _x_axis(start: float, end: float) -> Iterator[Html]:
    yield tag("text", "step", x=LEFT - 12, y=HEIGHT - 7, text_anchor="end")
    for value in ticks(start, end):
        x = round(LEFT + (value - start) / (end - start) * (WIDTH - LEFT - RIGHT), 1)
        yield tag("line", x1=x, x2=x, y1=TOP, y2=HEIGHT - BOTTOM, class_="grid")
        anchor = "end" if x > WIDTH - RIGHT - 12 else "middle"
        yield tag("text", short(value), x=x, y=HEIGHT - 7, text_anchor=anchor)


def _y_axis(start: float, end: float) -> Iterator[Html]:
    for value in ticks(start, end, 4):
        y = round(HEIGHT - BOTTOM - (value - start) / (end - start) * (HEIGHT - TOP - BOTTOM), 1)
        yield tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid")
        yield tag("text", short(value), x=LEFT - 5, y=y + 4, text_anchor="end")


def _curve(one: Series, x_from: float, x_to: float, y_from: float, y_to: float) -> Html:
    xs = SIZE * (one.steps - x_from) / (x_to - x_from)
    ys = SIZE * (1 - (one.values - y_from) / (y_to - y_from))
    points = [f"{x:.4g} {y:.4g}" for x, y in zip(xs, ys, strict=True)]
    color = f"c{one.color % NUM_COLORS}"
    curve = tag("path", d=Html("M" + "L".join(points)), class_=f"curve {one.style} {color}")
    if one.style != "dots":
        return curve
    dots = tag("path", d=Html("".join(f"M{point}h0" for point in points)), class_=f"dot {color}")
    return joined([curve, dots])


def _data(chart: Chart, ends: tuple[float, float, float, float]) -> Html:
    """The points for page.js, in a block that no browser runs."""
    series = [
        {
            "label": without_secrets(one.label),
            "x": [float(f"{value:.7g}") for value in one.steps],
            "y": [float(f"{value:.5g}") for value in one.values],
        }
        for one in chart.series
    ]
    values = json.dumps({"ends": ends, "zero": chart.from_zero, "series": series}, separators=(",", ":"))
    for letter in "<>&":
        values = values.replace(letter, f"\\u{ord(letter):04x}")
    return Html(f'<script type="application/json" class="points">{values}</script>')


def _in_words(chart: Chart) -> str:
    """The chart for those who can't see it."""
    lines = [
        f"{one.label}: from {one.values[0]:.4g} at step {one.steps[0]:.0f} to {one.values[-1]:.4g} at step {one.steps[-1]:.0f}"
        for one in chart.series
    ]
    return text(f"{chart.title}. {'; '.join(lines)}")
