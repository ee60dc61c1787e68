"""Algorithm and Backend: the two things that a plugin offers to the hub."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from hub.config.schema import AlgoConfig, RunConfig


def _always() -> str | None:
    return None


def _anything(cfg: RunConfig) -> Iterable[str]:
    return ()


def _nothing(cfg: RunConfig) -> str | None:
    return None


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """What can be asked for with `algo=NAME` or `hub.run("NAME", ...)`."""

    name: str
    """The word after `algo=`. Lower case, digits and underscores."""

    config: type[AlgoConfig]
    """The options with their defaults and meaning. No two algorithms share one class: it identifies its algorithm."""

    summary: str
    """One line for `--help`."""


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One way to run an algorithm. An algorithm without any backend can be listed but not run."""

    name: str
    """The word after `algo.backend=`."""

    algorithm: str
    """Name of the algorithm that this backend runs."""

    build: str
    """`"package.module:function"`, imported in a worker only. The function is `build(setup) -> Recipe` (`hub.recipe`)."""

    needs: tuple[str, ...] = ()
    """Top-level modules that must be installed. They are looked up, not imported."""

    install: str = ""
    """What to type when one of `needs` is missing. Empty: `pip install` and the names in `needs`."""

    priority: int = 0
    """`algo.backend=auto` takes the available backend with the highest number."""

    available: Callable[[], str | None] = _always
    """Returns None when the backend can run here, else the reason why not. Must not import anything heavy."""

    problems: Callable[[RunConfig], Iterable[str]] = _anything
    """A line for each option that this backend can't do, with what to type. Called when it is the one that will run; must not
    import anything heavy."""

    needs_gpu: Callable[[RunConfig], str | None] = _nothing
    """The line for a user whose options need an NVIDIA GPU where there is none, with what to type; None when they need none.
    Called when it is the one that will run; whether there is a GPU is found out by the hub."""

    def obstacle(self) -> str | None:
        """Why this backend can't run in this interpreter, with what to type; None when it can."""
        missing = [name for name in self.needs if find_spec(name) is None]
        if missing:
            todo = self.install or f"pip install {' '.join(missing)}"
            return f"not installed: {', '.join(missing)}. Type: {todo}"
        try:
            return self.available()
        except Exception as error:
            return f"its own check failed: {type(error).__name__}: {error}"


@dataclass(frozen=True, kw_only=True)
class DataFormat:
    """A format that a plugin adds."""

    name: str
    """The word after `data.format=`."""

    fields: tuple[str, ...]
    """Fields that a row of this format has. A row with all of them is taken for it when `data.format=auto`."""

    convert: Callable[[dict[str, Any]], dict[str, Any]]
    """From the fields of a row to those of one of the hub's own formats, e.g. `{"messages": [...]}`. With `roles`: to one
    such mapping for each role. Raises ValueError with what is wrong with a row."""

    summary: str = ""
    """One line on what it is."""

    roles: tuple[str, ...] = ()
    """Names of the samples of a row, for a format with several: `("chosen", "rejected")`. The row then counts as one in
    `effective_batch_size`. Empty: a row is one sample."""
