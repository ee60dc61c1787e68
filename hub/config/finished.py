"""Verbs on finished models (chat, evaluate, ...): what each of them declares, and the options that are its own.

Such a verb is a folder in hub/tasks/ with a module `verb.py` that holds its `FinishedVerb`, and a name in
`hub/tasks/verbs.py`. Nothing here imports torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(kw_only=True)
class FinishedOptions:
    """Options of every verb on a finished model. A verb subclasses this and adds its own: they are typed without a section."""

    run: str | None = None
    """The run whose model is asked: latest, a run folder, or one of its checkpoints. null: see `model` and `model.path`."""

    def problems(self) -> Iterator[str]:
        """One line for each clash of these options, beyond types and bounds."""
        yield from ()


@dataclass(frozen=True, kw_only=True)
class FinishedVerb:
    """One verb on a finished model."""

    name: str
    """The verb `python -m hub NAME`, and the Python call `hub.NAME`."""

    summary: str
    """What it does, in one line of the help."""

    options: type[FinishedOptions]
    """The options that are its own."""

    function: str
    """`"module:function"`, called as `function(asked)` with a `hub.models.finished.Asked`. Its result shows itself: `repr` is
    what the command line prints, and `as_json()` gives the values of `--json`."""

    sections: tuple[str, ...] = ("model", "data")
    """The sections of the config that it reads, besides the options of its own."""

    own_section: str | None = None
    """The one of `sections` whose options may be typed without its name."""

    needs_model: bool = True
    """Whether one finished model must be named. False: the options of its own say what is worked on."""

    has_result: bool = True
    """Whether the function returns a result. False: it returns None, all was printed already, and there is no `--json`."""

    reads_run: bool = False
    """Whether it reads the folder of the run itself, in any state, and needs neither its options nor its model."""

    flags: tuple[str, ...] = ()
    """Flags of its own: `--NAME` stands for the option NAME=true of `own_section`."""

    examples: tuple[tuple[str, str], ...] = ()
    """(What it does, command), for its help."""

    notes: str = ""
    """A paragraph for its help."""
