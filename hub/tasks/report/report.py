"""The verb `report`: reads run folders, writes one HTML file, and a picture of the curves if one is asked for."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from hub.errors import ConfigError
from hub.models.finished import Asked, run_folder
from hub.system.files import names_apart
from hub.tasks.report.page import comparison_page, run_page
from hub.tasks.report.picture import require_matplotlib, write_png
from hub.tasks.report.record import read_record
from hub.tasks.report.samples import samples_of
from hub.tasks.report.series import charts_of, compared
from hub.tasks.report.verb import ReportOptions

FILE_NAME = "report.html"


@dataclass(frozen=True, repr=False)
class Report:
    """A report that was written. In a notebook it shows itself."""

    path: Path
    """The HTML file."""

    png: Path | None
    """The picture of the curves, if one was asked for."""

    runs: tuple[Path, ...]
    """The run folders that it is on."""

    diagnosis: dict[str, list[dict[str, Any]]]
    """Name of each run -> what its curves show to be wrong."""

    def __repr__(self) -> str:
        lines = []
        for name, found in self.diagnosis.items():
            prefix = f"{name}: " if len(self.diagnosis) > 1 else ""
            lines += [f"{prefix}{one['title']}: {one['evidence']}" for one in found]
        files = [str(file) for file in (self.path, self.png) if file is not None]
        return "\n".join([*lines, f"wrote {' and '.join(files)}"])

    def as_json(self) -> dict[str, Any]:
        """The files and the findings, for scripts."""
        png = None if self.png is None else str(self.png)
        return {"path": str(self.path), "png": png, "runs": [*map(str, self.runs)], "diagnosis": self.diagnosis}

    def _repr_html_(self) -> str:
        page = escape(self.path.read_text(encoding="utf-8"))
        return f'<iframe srcdoc="{page}" sandbox="allow-scripts" style="width: 100%; height: 800px; border: 0"></iframe>'


def report(asked: Asked) -> Report:
    """Write the report that was asked for.

    Raises:
        ConfigError: there is no such run, or the file can't be written.
        LaunchError: a picture was asked for, and matplotlib is not installed.
    """
    options = asked.options
    assert isinstance(options, ReportOptions)
    folders = _folders(options, asked.cfg.output_dir)
    out = Path(os.path.expanduser(options.out)) if options.out else (Path() if options.runs else folders[0]) / FILE_NAME
    png = Path(os.path.expanduser(options.png)).absolute() if options.png else None
    if png is not None:
        require_matplotlib()
    records = [read_record(folder) for folder in folders]
    for record, name in zip(records, names_apart(folders), strict=True):
        record.name = name
    if options.runs:
        charts, title = compared(records), f"{len(records)} runs"
        page = comparison_page(records, charts)
    else:
        charts, title = charts_of(records[0]), records[0].name
        page = run_page(records[0], charts, samples_of(records[0], options.samples), asked.verbs)
    _write(out.absolute(), page)
    if png is not None:
        write_png(charts, title, png)
    findings = {record.name: [finding.as_json() for finding in record.findings()] for record in records}
    return Report(out.absolute(), png, tuple(folders), findings)


def _folders(options: ReportOptions, output_dir: str) -> list[Path]:
    """The run folders that were named, each once. A sweep stands for its runs."""
    if options.run is not None:
        if _jobs(options.run, output_dir):
            raise ConfigError(f"run={options.run} is a sweep. Type runs={options.run} to compare its runs")
        return [run_folder(options.run, output_dir, needs_model=False)]
    found: list[Path] = []
    for name in options.runs:
        found += _jobs(name, output_dir) or [run_folder(name, output_dir, needs_model=False)]
    different = list(dict.fromkeys(found))
    if len(different) < 2:
        raise ConfigError(
            f"runs={','.join(options.runs)} names one run only. Type run={options.runs[0]}, or runs=A,B to compare"
        )
    return different


def _jobs(name: str, output_dir: str) -> list[Path]:
    """The runs of a sweep. Empty: it is none."""
    for place in (Path(os.path.expanduser(name)), Path(os.path.expanduser(output_dir), name)):
        if place.is_dir() and not (place / "run.yaml").is_file():
            jobs = [file.parent for file in place.glob("*/overrides.json") if (file.parent / "run.yaml").is_file()]
            if jobs:
                return sorted(map(Path.resolve, jobs), key=lambda job: (len(job.name), job.name))
    return []


def _write(file: Path, page: Iterable[str]) -> None:
    """Write the page so that a reader sees the old or the new one."""
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        aside.write_text("".join(page), encoding="utf-8", errors="replace")
        aside.replace(file)
    except OSError as error:
        aside.unlink(missing_ok=True) if file.parent.is_dir() else None
        raise ConfigError(f"{file}: can't write there ({error.strerror}). Type out=FILE.html in a writable folder") from None
