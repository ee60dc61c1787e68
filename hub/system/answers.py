"""What is measured before training, and what an earlier run of the same kind has measured: then it is not measured again.

Who measures calls `measured`, wherever in the code it is. Who knows what a run depends on opens `Answers` around it. Without
that everything is measured. Measurements of one name are told apart by their order, which is the same in every run of a kind.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from hub.system import timeline
from hub.system.cache import cache_dir

T = TypeVar("T")


def entries_folder() -> Path:
    """The folder in the user's cache with what runs have measured."""
    return cache_dir() / "measured"


class Answers:
    """The measurements of one run.

    Args:
        known: what an earlier run of the same kind has measured, by name and number. Empty: there was none.
    """

    def __init__(self, known: Mapping[str, Any]) -> None:
        self.known = dict(known)
        self.given: dict[str, Any] = {}
        """What was measured or reused so far, as it is written to a file."""
        self.reused: list[str] = []
        """Names of what was reused, each once."""
        self.is_doubtful = False
        """Whether memory ran out during a measurement, which may end otherwise another time."""

    def next(self, name: str) -> str:
        """The key of the next measurement of a name."""
        return f"{name}.{sum(key.rpartition('.')[0] == name for key in self.given)}"

    def withdraw(self, name: str) -> None:
        """Take back the newest measurement of a name, which holds no more: it takes place after all."""
        key = [key for key in self.given if key.rpartition(".")[0] == name][-1]
        del self.given[key]
        self.known.pop(key, None)
        self.reused.remove(name)


class _Current:
    answers: Answers | None = None


_current = _Current()


@contextmanager
def open_answers(answers: Answers) -> Iterator[Answers]:
    """Let `measured` take what these answers know, and note there what it measures, within this context."""
    before, _current.answers = _current.answers, answers
    try:
        yield answers
    finally:
        _current.answers = before


def is_known(name: str) -> bool:
    """Whether the next measurement of a name will not take place."""
    answers = _current.answers
    return answers is not None and answers.next(name) in answers.known


def was_reused(name: str) -> bool:
    """Whether a measurement of a name did not take place."""
    return _current.answers is not None and name in _current.answers.reused


def doubt() -> None:
    """Say that what is measured now may be otherwise another time, since memory ran out. Nothing of this run is kept."""
    if _current.answers is not None:
        _current.answers.is_doubtful = True


def withdraw(name: str) -> None:
    """See `Answers.withdraw`."""
    if _current.answers is not None:
        _current.answers.withdraw(name)


def measured(
    name: str, measure: Callable[[], T], read: Callable[[Any], T], write: Callable[[T], Any] = lambda found: found
) -> T:
    """Measure something, or take what an earlier run has measured. Its time is that of the stage of its name.

    Args:
        name: of the measurement, one of `hub.system.timeline.STAGES`.
        measure: measures it. All ranks call it.
        read: makes the value of what JSON holds.
        write: makes what JSON can hold of a value.
    """
    answers = _current.answers
    with timeline.stage(name):
        if answers is None:
            return measure()
        key = answers.next(name)
        if key in answers.known:
            answers.given[key] = answers.known[key]
            if name not in answers.reused:
                answers.reused.append(name)
            return read(answers.known[key])
        found = measure()
        answers.given[key] = write(found)
        return found
