"""Generates docs/options.md from docstrings: `python -m hub.cli.options_page ALGORITHM... > docs/options.md`."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, fields
from inspect import getdoc
from typing import Any

from hub.compose.compose import compose
from hub.config.evaluate import EvaluateConfig
from hub.config.export import ExportConfig
from hub.config.generate import GenerateConfig
from hub.config.option import bounds_words, field_docs, type_words
from hub.config.plan import PlanConfig
from hub.config.schema import PARTS, AlgoConfig, DataConfig, LaunchConfig, ModelConfig, RunConfig, TrackConfig
from hub.tasks.verbs import FINISHED

SECTIONS: dict[str, Any] = {
    "model": ModelConfig,
    "data": DataConfig,
    "launch": LaunchConfig,
    "track": TrackConfig,
    "generate": GenerateConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
    "plan": PlanConfig,
}
HEAD = """# Options

**Reference.** Every option with its values, default and meaning.

On the command line options are written with their full name, `algo.num_epochs=2`. In Python an option is a keyword argument
with the last part of its name, `num_epochs=2`. `python -m hub show algo=NAME` prints all options with the values of
your command, and where each comes from.

This page is generated from the code: `python -m hub.cli.options_page {names} > docs/options.md`.
"""


def page(algorithms: Sequence[str]) -> str:
    """The whole page as Markdown.

    Args:
        algorithms: names of installed algorithms. Each gets a table.

    Raises:
        ConfigError: one of them is not installed.
    """
    lines = [HEAD.format(names=" ".join(algorithms)), "## algo: every algorithm", "", *_table("algo", AlgoConfig)]
    for name in algorithms:
        options = type(compose(f"algo={name}").algo)
        lines += [f"## algo={name}: its own options and defaults", "", getdoc(options) or "", ""]
        lines += _table("algo", options, AlgoConfig)
    for part, cls in SECTIONS.items():
        lines += [f"## {part}", "", getdoc(cls) or "", "", *_table(part, cls)]
    lines += ["## The run", "", *_table("", RunConfig, leave_out=PARTS)]
    for name, verb in FINISHED.items():
        lines += [f"## hub {name}: its own options", "", verb.summary, "", *_table("", verb.options)]
    return "\n".join(lines).rstrip() + "\n"


def _table(part: str, cls: Any, base: Any = None, leave_out: Sequence[str] = ()) -> Iterator[str]:
    """Yield a Markdown table of the options of a dataclass. With `base` only of those that are new or differ from it."""
    docs = field_docs(cls)
    known = {item.name: (item.default, field_docs(base)[item.name]) for item in fields(base)} if base else {}
    yield "| option | values | default | meaning |"
    yield "| --- | --- | --- | --- |"
    for item in fields(cls):
        if item.name in leave_out or known.get(item.name) == (item.default, docs[item.name]):
            continue
        name = f"{part}.{item.name}" if part else item.name
        cells = [
            f"`{name}`",
            _values(cls, item),
            f"`{_shown(_default(item))}`" if item.default != "" else "",
            docs[item.name],
        ]
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    yield ""


def _values(cls: Any, item: Field[Any]) -> str:
    if choices := item.metadata.get("choices"):
        return ", ".join([*choices, *(["null"] if item.default is None else [])])
    words = type_words(cls, item.name)
    return f"{words}; {bounds}" if (bounds := bounds_words(item.metadata)) else words


def _default(item: Field[Any]) -> Any:
    return item.default if item.default_factory is MISSING else item.default_factory()


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    sys.stdout.write(page(sys.argv[1:]))
