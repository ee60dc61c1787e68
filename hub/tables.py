"""Tables as plain text and as HTML, for what shows itself in a terminal and in a notebook."""

import re
import shutil
import textwrap
from collections.abc import Sequence
from html import escape

Rows = Sequence[tuple[str, str]]

MIN_COLUMN = 24
"""The least width in characters to which the last column of a table is broken."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def for_terminal(text: str) -> str:
    """The text without control characters but tabs and ends of lines: in a terminal they change more than this text."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def fitted(text: str, width: int | None = None) -> str:
    """The text with long last columns of tables broken within the column. Prose and commands are left to the terminal.

    Args:
        text: lines. Two spaces or more end a column.
        width: of the terminal, in characters. None: that of this process.
    """
    room = width or shutil.get_terminal_size().columns
    return "\n".join(_fitted_line(line, room) for line in text.split("\n"))


def _fitted_line(line: str, width: int) -> str:
    gaps = [gap.end() for gap in re.finditer(r"(?<=\S) {2,}(?=\S)", line)]
    if len(line) <= width or not gaps or width - gaps[-1] < MIN_COLUMN or "python -m hub" in line:
        return line
    indent = " " * gaps[-1]
    return textwrap.fill(
        line[gaps[-1] :], width, initial_indent=line[: gaps[-1]], subsequent_indent=indent, break_on_hyphens=False
    )


def as_text(rows: Rows) -> str:
    """Lines with a name and a value each, aligned.

    Args:
        rows: names and values.
    """
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def as_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with aligned columns: the first two to the left, the others to the right.

    Args:
        rows: the cells of each row, as many in each.
    """
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def as_html(rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> str:
    """A table for a notebook. All texts are escaped.

    Args:
        rows: the cells of each row.
        head: the names of the columns. Empty: the first cell of each row is its name.
    """
    top = f"<thead><tr>{''.join(_cell('th', name) for name in head)}</tr></thead>" if head else ""
    first = "td" if head else "th"
    body = "".join(f"<tr>{_cell(first, row[0])}{''.join(_cell('td', cell) for cell in row[1:])}</tr>" for row in rows)
    return f"<table>{top}<tbody>{body}</tbody></table>"


def _cell(tag: str, text: str) -> str:
    return f'<{tag} style="text-align: left">{escape(text)}</{tag}>'
