"""`python -m hub show`: every option of a config, with its value, source and meaning."""

import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from hub.config.option import bounds_words, field_docs, type_words
from hub.config.schema import PARTS, AlgoConfig, RunConfig
from hub.errors import ConfigError, did_you_mean
from hub.plugins.registry import data_format_names, registry
from hub.secrets import without_secrets

DEFAULT = "default"
LEAST_WIDTH, MOST_WIDTH = 60, 100


@dataclass(frozen=True)
class Option:
    """One option, as it is shown."""

    name: str
    value: Any
    default: Any
    source: str
    """`default`, `command line`, or the file that sets it."""

    allowed: str
    """The allowed values in words."""

    is_choice: bool
    """Whether only certain words are allowed."""

    meaning: str


def options_of(cfg: RunConfig, sources: Mapping[str, str]) -> list[Option]:
    """All options of a config. Secrets are redacted.

    Args:
        cfg: the config.
        sources: option -> source of its value, for all that are set.
    """
    return list(_options(cfg, "", sources))


def _options(part: Any, prefix: str, sources: Mapping[str, str]) -> Iterator[Option]:
    cls = type(part)
    docs = field_docs(cls)  # type: ignore[arg-type]  # mypy takes no class for hashable
    for item in fields(part):
        name, value = f"{prefix}{item.name}", getattr(part, item.name)
        if is_dataclass(value):
            yield from _options(value, f"{name}.", sources)
            continue
        default = item.default if item.default_factory is MISSING else item.default_factory()
        words = type_words(cls, item.name)
        if choices := item.metadata.get("choices"):
            words = ", ".join([*choices, *(["null"] if default is None else [])])
        elif bounds := bounds_words(item.metadata):
            words = f"{words}, {bounds}"
        safe = without_secrets(value) if isinstance(value, str) else value
        yield Option(name, safe, default, sources.get(name, DEFAULT), words, bool(choices), docs.get(item.name, ""))


def select(options: Sequence[Option], words: Sequence[str], has_algorithm: bool) -> list[Option]:
    """The options whose names begin with one of the words; for a word that begins none, those that contain it.

    Raises:
        ConfigError: a word is in no name.
    """
    wanted: set[str] = set()
    for word in words:
        names = [o.name for o in options if o.name == word] or [o.name for o in options if o.name.startswith(word)]
        names = names or [option.name for option in options if word in option.name]
        if not names:
            having = () if has_algorithm else _having(word.removeprefix("algo."))
            if having:
                raise ConfigError(f"show {word}: this is of an algorithm. Type algo={' or algo='.join(having)} as well")
            last = {option.name.rpartition(".")[2]: option.name for option in options}
            near = did_you_mean(word, [*last, *last.values()])
            hint = (
                "Type e.g. show algo. for a section" if has_algorithm else "For options of an algorithm type algo=NAME as well"
            )
            raise ConfigError(f"show {word}: no option has this in its name.{near} {hint}")
        wanted |= set(names)
    return [option for option in options if option.name in wanted]


def _having(word: str) -> list[str]:
    """The algorithms with an option whose name has a word in it."""
    algorithms = registry().algorithms.items()
    return sorted(name for name, algorithm in algorithms if any(word in item.name for item in fields(algorithm.config)))


def problems_of(cfg: RunConfig) -> list[str]:
    """What would be refused."""
    return cfg.problems(data_formats=data_format_names())


def page(cfg: RunConfig, options: Sequence[Option], is_whole: bool) -> None:
    """Print options by section, then what would be refused."""
    width = max(LEAST_WIDTH, min(MOST_WIDTH, shutil.get_terminal_size((80, 24)).columns))
    console = Console(soft_wrap=True, highlight=False)
    section = None
    for option in options:
        if (part := option.name.rpartition(".")[0].partition(".")[0]) != section:
            section = part
            console.print(Text("\n" + "\n".join(textwrap.wrap(_title(cfg, part), width)), style="bold"))
        is_set = option.source != DEFAULT or option.value != option.default
        rows = _rows(f"{option.name} = {shown(option.value)}", width, "  ", "    ")
        source = f"# {option.source}"
        if is_set and len(rows[-1]) + len(source) + 3 > width:
            rows.append(f"      {source}")
        elif is_set:
            rows[-1] += f"   {source}"
        console.print(Text("\n".join(rows), style="bold" if is_set else ""))
        text = option.meaning + (f" Allowed: {option.allowed}." if _adds_choices(option) else "")
        console.print(Text("\n".join(_rows(text, width, " " * 6, " " * 6)), style="dim" if console.is_terminal else ""))
    if is_whole:
        console.print("\n# tells where a value comes from that was set. show algo. lists one section.")
    if problems := problems_of(cfg):
        console.print("\nThis can't run yet:")
        for line in problems:
            console.print(Text("\n".join(_rows(line, width, "  ", "    "))))


def _rows(text: str, width: int, first: str, later: str) -> list[str]:
    """A text in lines of a width. Paths and names are not broken."""
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=later, break_long_words=False, break_on_hyphens=False
    )


def _adds_choices(option: Option) -> bool:
    """Whether an option has allowed words that its meaning does not list."""
    words = option.allowed.split(", ")
    return option.is_choice and not all(word in option.meaning for word in words)


def _title(cfg: RunConfig, part: str) -> str:
    """The heading of a section."""
    if part not in PARTS:
        return "The run"
    if part == "algo" and type(cfg.algo) is not AlgoConfig:
        algorithm = registry().algorithm_of(cfg.algo)
        return f"algo={algorithm.name}: {algorithm.summary}"
    return f"{part}: {field_docs(RunConfig)[part]}"


def shown(value: Any) -> str:
    """A value as it is typed."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{','.join(shown(item) for item in value)}]"
    if isinstance(value, bool):
        return str(value).lower()
    if is_dataclass(value):
        set_here = [item for item in fields(value) if getattr(value, item.name) != item.default]
        return f"{{{', '.join(f'{item.name}: {shown(getattr(value, item.name))}' for item in set_here)}}}"
    return str(value) if value != "" else "''"
