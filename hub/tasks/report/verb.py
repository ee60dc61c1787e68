"""The verb `report`: its options. Nothing here imports torch."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from hub.config.finished import FinishedOptions, FinishedVerb
from hub.config.option import option


@dataclass(kw_only=True)
class ReportOptions(FinishedOptions):
    """Options of `report`."""

    run: str | None = None
    """The run to report on, in any state: latest, a run folder, or the name of a run in output_dir."""

    runs: list[str] = field(default_factory=list)
    """Several runs to compare, each named as by `run`. A sweep stands for all of its runs."""

    out: str | None = None
    """The HTML file to write. null: report.html in the run folder, with `runs` in the folder where you are."""

    png: str | None = None
    """A picture of the curves to write besides, a .png file. Needs matplotlib. null: none."""

    samples: int = option(3, ge=0, le=50)
    """Rows of the data to show with their loss mask. They are encoded anew, which takes some seconds. 0: none."""

    def problems(self) -> Iterator[str]:
        if self.run is not None and self.runs:
            yield f"run={self.run} and runs= are both set. Type run=RUN for one run, or runs=A,B to compare"
        if self.run is None and not self.runs:
            yield "hub report: no run is named. Type run=latest, run=RUN_FOLDER, or runs=A,B to compare"
        if self.out is not None and not self.out.lower().endswith((".html", ".htm")):
            yield f"out={self.out} is not allowed. Allowed: a file that ends in .html"
        if self.png is not None and not self.png.lower().endswith(".png"):
            yield f"png={self.png} is not allowed. Allowed: a file that ends in .png"


VERB = FinishedVerb(
    name="report",
    summary="Write a report on a run, or on several: one HTML file with curves, data, samples and what is wrong.",
    options=ReportOptions,
    function="hub.tasks.report.report:report",
    sections=(),
    needs_model=False,
    reads_run=True,
    examples=(
        ("the newest run", "python -m hub report run=latest"),
        ("several runs beside each other", "python -m hub report runs=runs/a,runs/b out=both.html"),
        ("a picture of the curves too", "python -m hub report run=latest png=curves.png"),
    ),
    notes="A run that is going on, was interrupted or has failed gets a report too. The file makes no request to anywhere.",
)
