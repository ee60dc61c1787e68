"""The flags of the command line, and what a verb is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Flags:
    """The flags of the command line."""

    multirun: bool = False
    json: bool = False
    quiet: bool = False
    config: str | None = None
    config_dir: str | None = None
    keep: str | None = None
    yes: bool = False
    force: bool = False


FLAGS = {
    "--config": ("FILE", "a YAML file with options; the same as the file's name alone"),
    "--config-dir": ("DIR", "your own folder with more choices for the groups (DIR/model/mine.yaml)"),
    "--multirun": ("", "one run for each combination of values: algo.num_epochs=1,2"),
    "--json": ("", "print the result as JSON on stdout, and all else on stderr"),
    "--quiet": ("", "print the result and errors only; log.txt in the run folder has the rest"),
    "--keep": ("N", "remove all runs but the newest N with a model, and N without. Without --yes only list them"),
    "--yes": ("", "with --keep: do remove them"),
    "--force": ("", "keep an export that fails its check; its name and its card say so"),
    "--help": ("", "this page, or with a verb the help of that verb"),
    "--version": ("", "the version"),
}
"""Flag -> (what follows it, meaning)."""

OF_CONFIG = ("--config", "--config-dir", "--json")
"""The flags of every verb that composes a config."""

OF_WORK = (*OF_CONFIG, "--quiet")
"""The flags of the verbs that work for a while and have a result."""


@dataclass(frozen=True)
class Verb:
    """What a verb does, and what the help has about it."""

    run: Callable[[list[str], Flags], int]
    summary: str
    words: str = "[FILE.yaml] [group=choice] [option=value]"
    """What may follow the verb."""

    flags: tuple[str, ...] = OF_CONFIG
    """Its flags, besides `--help`."""

    examples: tuple[tuple[str, str], ...] = ()
    """(What it does, command)."""

    notes: str = ""
    """A paragraph for its help."""

    options: type[Any] | None = None
    """The dataclass of options that are its own, typed without a section."""

    section: str | None = None
    """The section of the config whose options are typed without its name too."""
