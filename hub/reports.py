"""What Python calls return beside a `Result`: the options of a run, and the report on its data. They show themselves."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from io import StringIO
from shutil import get_terminal_size
from typing import Any

from hub.errors import did_you_mean
from hub.tables import as_html

HEAD = ("option", "value", "from", "meaning")


@dataclass(frozen=True)
class Option:
    """One option of a run."""

    name: str
    """Full name, e.g. `algo.lora_r`. In Python its last part is the keyword."""

    value: Any
    source: str
    """`default`, `keyword`, or the preset that sets it."""

    meaning: str


class Options(Mapping[str, Any]):
    """All options of a run: full name -> value. In a terminal and in a notebook it is a table."""

    def __init__(self, options: list[Option], problems: list[str]) -> None:
        self.options = options
        self.problems = problems
        """Why these options can't run yet, one line each. Empty if nothing is wrong so far."""

    def __getitem__(self, name: str) -> Any:
        return next(option.value for option in self._named(name))

    def __iter__(self) -> Iterator[str]:
        return (option.name for option in self.options)

    def __len__(self) -> int:
        return len(self.options)

    def _named(self, name: str) -> Iterator[Option]:
        found = [option for option in self.options if name in (option.name, option.name.rpartition(".")[2])]
        if not found:
            raise KeyError(f"{name}: there is no such option.{did_you_mean(name, [o.name for o in self.options])}")
        return iter(found)

    def _rows(self) -> list[list[str]]:
        return [[option.name, str(option.value), option.source, option.meaning] for option in self.options]

    def __repr__(self) -> str:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for column in HEAD:
            table.add_column(column, overflow="fold", no_wrap=column == "option")
        for row in self._rows():
            table.add_row(*map(Text, row))
        out = StringIO()
        Console(file=out, width=get_terminal_size((120, 24)).columns, force_jupyter=False, force_terminal=False).print(table)
        lines = [line.rstrip() for line in out.getvalue().splitlines()]
        return "\n".join([*lines, *(f"This can't run yet: {line}" for line in self.problems)])

    def _repr_html_(self) -> str:
        return as_html(self._rows(), HEAD) + "".join(f"<p>This can't run yet: {escape(line)}</p>" for line in self.problems)


@dataclass(frozen=True, repr=False)
class DataReport:
    """What `hub.data(...)` finds in the data of a run. In a terminal and in a notebook it is a page."""

    report: Mapping[str, Any]
    """Lengths, counts and findings, as `python -m hub data --json` prints them."""

    page: str
    """The report as text, with some samples. [[ and ]] mark what is trained."""

    spoils: bool
    """Whether something would spoil training."""

    def __repr__(self) -> str:
        return self.page

    def _repr_html_(self) -> str:
        return f"<pre>{escape(self.page)}</pre>"
