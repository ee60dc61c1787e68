"""The curves as a PNG, by matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hub.errors import ConfigError, LaunchError
from hub.tasks.report.series import Chart


def require_matplotlib() -> None:
    """Refuse a picture where matplotlib is not installed.

    Raises:
        LaunchError: it is not.
    """
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise LaunchError("png= needs matplotlib, which is not installed. Type pip install matplotlib, or leave png out")


def write_png(charts: Sequence[Chart], title: str, file: Path) -> None:
    """Draw all charts into one picture.

    Raises:
        ConfigError: there is nothing to draw, or the file can't be written.
    """
    if not charts:
        raise ConfigError(f"png={file}: no step was logged, so there is no curve to draw. Leave png out")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(2, len(charts))
    rows = -(-len(charts) // columns)
    figure = Figure(figsize=(6 * columns, 3.2 * rows), layout="constrained")
    canvas: Any = FigureCanvasAgg(figure)
    figure.suptitle(title.replace("$", r"\$"))
    for place, chart in enumerate(charts):
        axes = figure.add_subplot(rows, columns, place + 1)
        for one in chart.series:
            marker, alpha = ("o" if one.style == "dots" else None), (0.35 if one.style == "faint" else 1.0)
            label = f" {one.label}".replace("$", r"\$")  # a label that begins with _ would be left out
            axes.plot(one.steps, one.values, marker=marker, alpha=alpha, label=label, color=f"C{one.color}")
        axes.set_title(chart.title)
        axes.set_xlabel("step")
        axes.set_ylabel(chart.unit)
        if chart.from_zero:
            highest = max(float(one.values.max()) for one in chart.series)
            axes.set_ylim(min(0.0, *(float(one.values.min()) for one in chart.series)), 1.05 * highest or 1.0)
        if len(chart.series) > 1:
            axes.legend(fontsize="small")
    try:
        canvas.print_png(str(file))
    except OSError as error:
        raise ConfigError(f"png={file}: can't write there ({error.strerror}). Type png=FILE.png in a writable folder") from None
