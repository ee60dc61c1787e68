"""What a command line may hold: verbs, flags, and the options and presets that are installed, with their values."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_args

from hub.cli.flags import Verb
from hub.compose.compose import groups
from hub.config.option import AUTO, field_docs
from hub.config.schema import RunConfig
from hub.plugins.registry import registry

COMMANDS = ("python", "python3", "python3.11", "python3.12", "python3.13", "torchrun")
"""Commands whose words behind `-m hub` are completed as those of the command `hub`."""


@dataclass(frozen=True)
class Words:
    """What can be completed."""

    verbs: dict[str, str]
    """Verb -> summary."""

    flags: dict[str, str]
    """Flag -> meaning."""

    options: dict[str, list[str]]
    """Option or group -> the values that are known. Empty: any value."""

    takes_file: set[str]
    """Options whose value may be a file or a folder."""

    meanings: dict[str, str]
    """Option -> its meaning, one sentence."""

    shells: Sequence[str]
    """What may follow the verb `completion`."""


def words_of(
    verbs: Mapping[str, Verb], flags: Mapping[str, tuple[str, str]], shells: Sequence[str], config_dir: str | None
) -> Words:
    """All words, with the options of every algorithm that is installed.

    Args:
        verbs: name -> verb.
        flags: flag -> (what follows it, meaning).
        shells: what may follow the verb `completion`.
        config_dir: a further folder with config groups.
    """
    words = Words(
        verbs={name: verb.summary for name, verb in verbs.items()},
        flags={name: meaning for name, (_, meaning) in flags.items()},
        options=dict(groups(config_dir)),
        takes_file=set(),
        meanings={},
        shells=shells,
    )
    parts: list[tuple[str, Any]] = [("", RunConfig)]
    parts += [("algo.", algorithm.config) for algorithm in registry().algorithms.values()]
    parts += [("", verb.options) for verb in verbs.values() if verb.options is not None]
    while parts:
        prefix, cls = parts.pop()
        docs = field_docs(cls)
        for item in fields(cls):
            name = f"{prefix}{item.name}"
            if is_dataclass(item.type):
                parts.append((f"{name}.", item.type))
            elif name != "task":
                words.options.setdefault(name, list(_values(item)))
                words.meanings.setdefault(name, _first_sentence(docs.get(item.name, "")))
                if item.name.endswith(("path", "_dir", "_config")) or item.name in (
                    "resume",
                    "python",
                    "template",
                    "run",
                    "out",
                ):
                    words.takes_file.add(name)
    return words


def _values(item: Any) -> Iterator[str]:
    """Yield the values of an option that are known beforehand."""
    yield from item.metadata.get("choices", ())
    if item.type is bool:
        yield from ("true", "false")
    elif item.default == AUTO and not item.metadata.get("choices"):
        yield AUTO
    if item.default is None or type(None) in get_args(item.type):
        yield "null"


def _first_sentence(text: str) -> str:
    return re.split(r"(?<!\be\.g)\.(?:\s|$)", text, maxsplit=1)[0]
