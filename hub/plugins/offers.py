"""Algorithm, Backend, DataFormat, Metric and Exporter: what a plugin offers to the hub."""

from collections.abc import Callable, Collection, Iterable
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


def _any_rows(cfg: RunConfig) -> "Collection[Roles]":
    return ()


Roles = tuple[str, ...]
"""The roles of a row's samples, in order, as `("chosen", "rejected")`."""

SINGLE: Roles = ("",)
"""Those of a row with one sample, such as a conversation."""


def one_sample(cfg: RunConfig) -> Collection[Roles]:
    """What `Backend.rows` is for an algorithm that trains on rows with one sample."""
    return (SINGLE,)


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """An algorithm, chosen with `algo=NAME` or `hub.run("NAME", ...)`."""

    name: str
    """The value of `algo=`. Lower case letters, digits and underscores."""

    config: type[AlgoConfig]
    """The dataclass of its options. Each algorithm has a class of its own, which identifies it."""

    summary: str
    """One line for `--help`."""


@dataclass(frozen=True, kw_only=True)
class Backend:
    """An implementation of an algorithm. An algorithm without any backend can be listed but not run."""

    name: str
    """The value of `algo.backend=`."""

    algorithm: str
    """Name of the algorithm that this backend runs."""

    build: str | Callable[[Any], Any]
    """`"package.module:function"`, imported in a worker only. The function is `build(setup) -> Recipe` (`hub.recipe`). The
    function itself if it is defined in this process (`hub.register`), where it trains then."""

    plan: str | None = None
    """`"package.module:function"`, for a `build` that reads weights or data: `plan(setup) -> Recipe` returns the same model on
    torch's meta device, from shapes alone. None: `build` itself is called so, for `python -m hub plan`."""

    needs: tuple[str, ...] = ()
    """Top-level modules that must be installed. They are looked up, not imported."""

    install: str = ""
    """What to type if one of `needs` is missing. Empty: `pip install` and the missing names."""

    priority: int = 0
    """`algo.backend=auto` chooses the available backend of the highest priority."""

    available: Callable[[], str | None] = _always
    """Returns None if the backend can run here, else the reason why not. Must not import anything slow."""

    problems: Callable[[RunConfig], Iterable[str]] = _anything
    """Returns a line for each option that this backend does not support, with what to type. Called if the backend was chosen.
    Must not import anything slow."""

    needs_gpu: Callable[[RunConfig], str | None] = _nothing
    """Returns the error line, with what to type, if the options need an NVIDIA GPU, else None. Called if the backend was
    chosen. The hub reports the line on machines without a GPU."""

    rows: Callable[[RunConfig], Collection[Roles]] = _any_rows
    """Returns the roles that a row may have, each a tuple as `Objective.roles`: `one_sample`, or a function of the options.
    Rows with others are refused before anything is started. Empty: workers find out, from the objective."""

    def obstacle(self) -> str | None:
        """Why this backend can't run in this interpreter, with what to type. None if it can."""
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
    """A data format that a plugin adds."""

    name: str
    """The value of `data.format=`."""

    fields: tuple[str, ...]
    """Required fields of a row. With `data.format=auto` a row with all of them is taken for this format."""

    convert: Callable[[dict[str, Any]], dict[str, Any]]
    """Converts the fields of a row to those of one of the hub's own formats, e.g. `{"messages": [...]}`. With `roles`: to one
    such mapping for each role. Raises ValueError if the row is invalid."""

    summary: str = ""
    """One line of description."""

    roles: tuple[str, ...] = ()
    """Names of the samples of a row, for a format with several: `("chosen", "rejected")`. The row then counts as one in
    `effective_batch_size`. Empty: a row is one sample."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric of generated answers that a plugin adds to `evaluate.metrics`."""

    name: str
    """The value of `evaluate.metrics=`. Lower case letters, digits and underscores."""

    function: str | Callable[..., float]
    """`"package.module:function"`, imported when the metric is asked for; or the function itself. It returns a number for one
    answer. Its arguments have the names of what they get: `answer` (a text), `reference` (the text of the row's own answer),
    `row` (all fields of the row), or the name of a field of the row."""

    better: str = "higher"
    """`higher` or `lower`."""

    unit: str = "fraction"
    """What the number counts, for the table."""

    summary: str = ""
    """One line of description."""


@dataclass(frozen=True, kw_only=True)
class Exporter:
    """A way to write a finished model: one value of `export.to`."""

    name: str
    """The value of `export.to=`. Lower case letters, digits and underscores."""

    function: str | Callable[..., Any]
    """`"package.module:function"`, imported when the export runs; or the function itself. It is called as `function(job)`
    with a `hub.tasks.export.job.Job`, writes into the folder `job.out`, and returns a list of
    `hub.tasks.export.job.Written`."""

    summary: str
    """One line for the help and for error messages."""

    needs: tuple[str, ...] = ()
    """Top-level modules that must be installed. They are looked up, not imported."""

    install: str = ""
    """What to type if one of `needs` is missing. Empty: `pip install` and the missing names."""

    problems: Callable[[RunConfig], Iterable[str]] = _anything
    """Returns a line for each option or tool that stands in the way, with what to type. Called before anything is loaded. Must
    not import anything slow."""

    ready: str | Callable[..., Any] | None = None
    """Like `function`, called as `ready(asked)` with a `hub.models.finished.Asked` before the model is loaded. It may take
    seconds and use the network, and raises a `HubError` if the export can't succeed."""

    writes_model: bool = True
    """Whether it writes the model: each folder gets a model card, and the model is loaded to be compared with. False: it passes
    on what is there, and gets a job without tokenizer and rows if it runs alone."""

    after: tuple[str, ...] = ()
    """Exporters that run before this one where both are asked for."""

    brings: tuple[str, ...] = ()
    """Exporters that this one builds on: they run too where they are not asked for."""

    def obstacle(self) -> str | None:
        """Why this exporter can't run in this interpreter, with what to type. None if it can."""
        missing = [name for name in self.needs if find_spec(name) is None]
        if not missing:
            return None
        return f"not installed: {', '.join(missing)}. Type: {self.install or 'pip install ' + ' '.join(missing)}"
