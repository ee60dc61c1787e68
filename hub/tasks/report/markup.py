"""HTML of the report. Every text of a user goes through `text`, which escapes it and redacts secrets."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from shlex import quote
from typing import Any

from hub.secrets import without_secrets

_LONGEST = 4000
"""Characters of one text that are shown."""


class Html(str):
    """Markup that is safe to put into the page: made here, with every text in it escaped."""

    __slots__ = ()


@dataclass(frozen=True)
class Table:
    """A table: names of the columns, and rows of cells. Cells that are `Html` are taken as they are."""

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    numeric: frozenset[int] = frozenset()
    """Columns with numbers, which are right-aligned."""


def text(value: Any) -> Html:
    """A text of a user as HTML."""
    if isinstance(value, Html):
        return value
    shown = without_secrets(plain(value))
    if len(shown) > _LONGEST:
        shown = f"{shown[:_LONGEST]} ... ({len(shown):,} characters)"
    return Html(escape(shown))


def plain(value: Any) -> str:
    """A value as one would type it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def typed(name: str, value: Any) -> str:
    """An option as one types it in a shell."""
    return quote(f"{name}={value}")


def joined(parts: Iterable[str]) -> Html:
    """Pieces of markup one after the other. Plain texts are escaped."""
    return Html("".join(text(part) for part in parts))


def tag(name: str, *content: Any, **attributes: Any) -> Html:
    """An element. Content is escaped unless it is `Html`. `class_` stands for `class`, `_` in other names for `-`."""
    shown = ""
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        label = key.rstrip("_").replace("_", "-")
        shown += f" {label}" if value is True else f' {label}="{text(value)}"'
    return Html(f"<{name}{shown}>{joined(content)}</{name}>")


def section(identifier: str, title: str, *content: Any) -> Html:
    """A section of the page with its heading."""
    return tag("section", tag("h2", title), *content, id=identifier)


def table(values: Table, caption: str = "", stacks: bool = True) -> Html:
    """A table. On a narrow screen its rows become lists, or it scrolls sideways by itself.

    Args:
        values: head and rows.
        caption: its title.
        stacks: whether rows become lists. False: where columns are to be compared.
    """
    head = tag("tr", *(tag("th", name, scope="col", class_=_class(place, values)) for place, name in enumerate(values.head)))
    rows = [tag("tr", *(_cell(cell, at, values) for at, cell in enumerate(row))) for row in values.rows]
    title = [tag("caption", caption)] if caption else []
    inner = tag("table", *title, tag("thead", head), tag("tbody", *rows), class_="stacks" if stacks else "wide")
    return tag("div", inner, class_="scroll", tabindex="0", role="region", aria_label=caption or "table")


def folded(summary: str, *content: Any) -> Html:
    """Content that is folded away."""
    return tag("details", tag("summary", summary), *content)


def note(*content: Any) -> Html:
    """A paragraph in a quieter color."""
    return tag("p", *content, class_="note")


def code(value: Any) -> Html:
    """A command or the name of an option."""
    return tag("code", value)


def commands(pairs: Iterable[tuple[str, str]]) -> Html:
    """Commands, each with what it does."""
    return tag("dl", *(joined([tag("dt", what), tag("dd", code(command))]) for what, command in pairs), class_="commands")


def _cell(cell: Any, place: int, values: Table) -> Html:
    return tag("td", cell, class_=_class(place, values), data_label=values.head[place] or None)


def _class(place: int, values: Table) -> str | None:
    return "number" if place in values.numeric else None
