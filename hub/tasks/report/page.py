"""The whole page: style and script within it, and a policy that forbids every request."""

import hashlib
from base64 import b64encode
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path

from hub.errors import first_line
from hub.tasks.report import data_section, measured, sections
from hub.tasks.report.afterwards import afterwards
from hub.tasks.report.drawing import figures
from hub.tasks.report.markup import Html, joined, note, section, tag, text
from hub.tasks.report.record import ODD_VALUES, Record
from hub.tasks.report.samples import Shown
from hub.tasks.report.series import Chart
from hub.version import VERSION

_HERE = Path(__file__).parent
_HOW = "Drag across a chart to zoom, double-click to go back, click a name to hide its curve. Keys: arrows, + and -, Escape."


def run_page(
    record: Record, charts: Sequence[Chart], shown: tuple[Sequence[Shown], str], verbs: Collection[str]
) -> Iterator[str]:
    """The report on one run, in pieces.

    Args:
        record: the run.
        charts: its curves.
        shown: samples with their loss mask, and why there are none.
        verbs: the verbs on finished models that there are.
    """
    what = " · ".join(filter(None, [record.algorithm, record.model]))
    header = [tag("h1", record.name, " ", sections.badge(record)), tag("p", what, class_="subtitle"), note(str(record.path))]
    parts: list[Callable[[], Html]] = [
        partial(sections.outcome, record),
        partial(sections.diagnosis, record, verbs),
        partial(measured.changes, record, verbs),
        partial(afterwards, record),
        partial(_curves, charts),
        partial(measured.answers, record, verbs),
        partial(data_section.data, record),
        partial(data_section.samples, *shown),
        partial(sections.asked, record),
        partial(sections.decided, record),
        partial(sections.go_on, record, verbs),
    ]
    body = [_or_why_not(part, number) for number, part in enumerate(parts)]
    return _page(record.name, header, body)


def comparison_page(records: Sequence[Record], charts: Sequence[Chart]) -> Iterator[str]:
    """The report on several runs, in pieces."""
    rows = [tag("li", record.name, " ", sections.badge(record), note(str(record.path))) for record in records]
    header = [tag("h1", f"{len(records)} runs"), tag("ul", *rows, class_="runs")]
    parts: list[Callable[[], Html]] = [
        partial(sections.results_table, records),
        partial(_curves, charts),
        partial(sections.options_table, records),
    ]
    body = [_or_why_not(part, number) for number, part in enumerate(parts)]
    return _page(f"{len(records)} runs", header, body)


def _or_why_not(part: Callable[[], Html], number: int) -> Html:
    """A part of the page. One that can't be made leaves the others as they are."""
    try:
        return part()
    except ODD_VALUES as error:
        why = f"A file of the run holds values that this version of the hub does not write ({first_line(error)})."
        return section(f"odd{number}", "Not shown", note(why))


def _curves(charts: Sequence[Chart]) -> Html:
    if not charts:
        return section("curves", "Curves", note("No step was logged."))
    hint = tag("p", _HOW, class_="note hint", hidden=True)
    return section("curves", "Curves", hint, tag("div", *figures(charts), class_="charts"))


def _page(title: str, header: Sequence[Html], body: Sequence[Html]) -> Iterator[str]:
    style, script = ((_HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    allowed = f"style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    policy = f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"
    yield '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    yield f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    yield '<meta name="color-scheme" content="light dark">\n'
    yield f"<title>{text(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
    yield tag("header", *header)
    yield "\n"
    yield tag("main", joined(body))
    made = datetime.now().strftime("%Y-%m-%d %H:%M")
    yield tag("footer", f"Made on {made} by hub report {VERSION}. This file is whole: it makes no request.")
    yield f"\n<script>{script}</script>\n</body>\n</html>\n"


def _digest(content: str) -> str:
    return f"sha256-{b64encode(hashlib.sha256(content.encode()).digest()).decode()}"
