"""Runs tests on the mutants of one file: each in a forked process that has torch, the tests and what they test imported.

First all tests that belong to the file run on the file as it is, traced: so it is known which of them reach which line, and how
long each takes. A mutant then gets those that reach its line, the quickest first, until one fails.

* A mistake within a function is made by giving the function other code, in a process forked behind the imports.
* One that acts at the import of its module (a constant, a field) gets a process forked before the imports.
* A line that is reached by other processes only (those that tests start as `sys.executable`) is tried by the tests that start
  some. They import the mutant by `site/sitecustomize.py`.
"""

import functools
import gc
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType, FunctionType, SimpleNamespace
from typing import Any

import pytest
from _pytest.runner import runtestprotocol
from mutants.belongs import ROOT, tests_of
from mutants.mutate import Module, Mutant
from mutants.source import use_source

SITE = Path(__file__).parent / "site"
MUTANT = "HUB_MUTANT"
"""Environment variable with file and number of a mutant, for other processes."""

LEAST_SECONDS = 20.0
"""A test of a mutant may take that long and ten times what it took without, and counts as failed then."""


@dataclass
class Tried:
    """What became of a mutant."""

    mutant: Mutant
    survived: bool
    by: str = ""
    """The test that failed, or why there is none."""


@dataclass
class Baseline:
    """What the tests of a file do without a mutant."""

    seconds: dict[str, float] = field(default_factory=dict)
    lines: dict[str, set[int]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    start_processes: list[str] = field(default_factory=list)

    def reaching(self, mutant: Mutant) -> list[str]:
        """The tests that reach the line of a mutant, or the first of its statement, the quickest first."""
        places = {mutant.line, mutant.statement}
        return sorted((name for name, lines in self.lines.items() if lines & places), key=self.seconds.__getitem__)


class Session:
    """As a plugin of pytest, takes the place of its loop over the tests."""

    def __init__(self, file: str, chosen: list[Mutant], module: Module, say: Callable[[Tried], None], deadline: float) -> None:
        self.file, self.chosen, self.module, self.say, self.deadline = file, chosen, module, say, deadline
        self.baseline = Baseline()
        self.at_import: list[Mutant] = []
        self.steady: set[str] = set()
        """Tests that were seen to pass in a forked process without a mutant."""
        self.unsteady: set[str] = set()
        """Tests that were seen to fail there."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        for item in session.items:
            with _traced(self.module.name) as lines, _starting_processes() as started_processes:
                started = time.monotonic()
                reports = runtestprotocol(item, nextitem=_between(session), log=False)
            self.baseline.seconds[item.nodeid] = time.monotonic() - started
            if any(report.failed for report in reports):
                self.baseline.failed.append(item.nodeid)
                continue
            self.baseline.lines[item.nodeid] = lines
            if started_processes:
                self.baseline.start_processes.append(item.nodeid)
        swap = Swap(self.module)
        caches = [made for made in gc.get_objects() if isinstance(made, functools._lru_cache_wrapper) and _is_ours(made)]
        gc.collect()
        gc.freeze()

        def here(mutant: Mutant) -> None:
            swap.make(mutant)
            for cache in caches:
                cache.cache_clear()

        for mutant in self.chosen:
            if time.monotonic() > self.deadline:
                break
            if not mutant.in_function or not swap.fits(mutant):
                self.at_import.append(mutant)
                continue
            # A test that starts processes may compare them with this one, so all of them must be alike.
            alone = [name for name in self.baseline.reaching(mutant) if name not in self.baseline.start_processes]
            tried = self._try(mutant, items, alone, here)
            if tried.survived and self.baseline.start_processes:
                names = sorted(self.baseline.start_processes, key=self.baseline.seconds.__getitem__)

                def elsewhere(mutant: Mutant) -> None:
                    session._setupstate.teardown_exact(None)  # what has started already has no mutant
                    here(mutant)
                    _for_other_processes(self.file, mutant)

                tried = self._try(mutant, items, names, elsewhere)
            self.say(tried)
        return True

    def _try(self, mutant: Mutant, items: dict[str, pytest.Item], names: list[str], make: Callable[[Mutant], None]) -> Tried:
        """Run tests on a mutant, which `make` makes, in a forked process."""
        while names := [name for name in names if name not in self.unsteady]:
            most = LEAST_SECONDS + 10 * sum(self.baseline.seconds[name] for name in names)

            def work(names: list[str] = names) -> str | None:
                make(mutant)
                return _first_failure([items[name] for name in names])

            tried = _tried(mutant, work, most)
            if tried.survived or tried.by in self.steady or tried.by not in items:
                return tried
            # A test may fail for another reason than the mutant, such as another order of tests.
            before = [items[name] for name in names[: names.index(tried.by) + 1]]
            without = _tried(mutant, lambda before=before: _first_failure(before), most)
            if without.survived:
                self.steady.add(tried.by)
                return tried
            self.unsteady.add(without.by)
            self.unsteady.add(tried.by)
        return Tried(mutant, True, "no test reaches it")


def run_file(file: str, chosen: list[Mutant], module: Module, deadline: float, say: Callable[[Tried], None]) -> list[str]:
    """Try mutants of a file.

    Args:
        file: its path in the project.
        chosen: the mutants, of `module`.
        module: the file, with all of its mutants.
        deadline: when to end, by `time.monotonic`.
        say: takes each result.

    Returns:
        Tests that fail without a mutant.
    """
    tests = tests_of(file)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        os.environ["HUB_CACHE"] = str(Path(folder) / "cache")
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _file_process(file, chosen, module, deadline, tests, folder, writer)
        os.close(writer)
        last: dict[str, Any] = {"failed": [f"{file}: its tests could not be run: {' '.join(tests)}"], "at_import": []}
        with os.fdopen(reader, encoding="utf-8") as lines:
            for line in lines:
                said = json.loads(line)
                if "failed" in said:
                    last = said
                else:
                    say(Tried(module.mutants[said["number"]], said["survived"], said["by"]))
        os.waitpid(child, 0)
        for number in last["at_import"]:
            if time.monotonic() > deadline:
                break
            mutant = module.mutants[number]

            def work(mutant: Mutant = mutant) -> str | None:
                use_source(module, mutant)
                _for_other_processes(file, mutant)
                passes = _pytest([*last["tests"], "-x"], Path(folder) / "import")
                return None if passes == 0 else "the tests of the file"

            say(_tried(mutant, work, LEAST_SECONDS + 10 * last["seconds"]))
    return list(last["failed"])


def _file_process(
    file: str, chosen: list[Mutant], module: Module, deadline: float, tests: list[str], folder: str, writer: int
) -> None:
    """The process of a file, which imports its tests."""
    try:

        def tell(said: dict[str, Any]) -> None:
            os.write(writer, f"{json.dumps(said)}\n".encode())

        session = Session(
            file, chosen, module, lambda t: tell({"number": t.mutant.number, "survived": t.survived, "by": t.by}), deadline
        )
        _pytest(tests, Path(folder) / "tests", session)
        before = session.baseline
        passing = [name for name in before.seconds if name not in before.failed]
        seconds = sum(before.seconds.values())
        tell(
            {"failed": before.failed, "tests": passing, "seconds": seconds, "at_import": [m.number for m in session.at_import]}
        )
    finally:
        os._exit(0)


def _pytest(tests: list[str], folder: Path, plugin: object | None = None) -> int:
    """Run pytest in this process, without a word."""
    os.chdir(ROOT)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--basetemp={folder}", "-o", "tmp_path_retention_policy=none"]
    return int(pytest.main([*options, *tests], plugins=[plugin] if plugin else []))


def _between(session: pytest.Session) -> pytest.Item:
    """A next test for pytest, so that it keeps what the whole session has, as the server of tests/warm, and nothing else."""
    return SimpleNamespace(listchain=lambda: [session])  # type: ignore[return-value]


def _first_failure(items: list[pytest.Item]) -> str | None:
    """Run tests until one fails. Returns its name."""
    for item in items:
        reports = runtestprotocol(item, nextitem=_between(item.session), log=False)
        if any(report.failed for report in reports):
            return item.nodeid
    return None


def _tried(mutant: Mutant, work: Callable[[], str | None], most_seconds: float) -> Tried:
    """Run `work`, which returns the test that fails, in a forked process of bounded time."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        os.close(reader)
        said = "the process ended"
        try:
            _own_cache()
            said = work() or ""
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        finally:
            os.write(writer, said[:4000].encode() or b"\0")
            os._exit(0)
    os.close(writer)
    bell = threading.Timer(most_seconds, os.killpg, (child, signal.SIGKILL))
    bell.daemon = True
    bell.start()
    with os.fdopen(reader, "rb") as file:
        said = file.read(4000)
    bell.cancel()
    os.waitpid(child, 0)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what its tests started and did not end
    if said == b"\0":
        return Tried(mutant, True, "all tests pass")
    return Tried(mutant, False, said.decode() or f"ended, or took over {most_seconds:.0f} s")


def _own_cache() -> None:
    """A mutant must not leave wrong files in the cache of the next one."""
    cache = Path(os.environ["HUB_CACHE"])
    mine = cache.with_name(f"cache-{os.getpid()}")
    if cache.is_dir():
        shutil.copytree(cache, mine, copy_function=os.link)
    os.environ["HUB_CACHE"] = str(mine)


class Swap:
    """Gives the functions of a module the code of a mutant."""

    def __init__(self, module: Module) -> None:
        self._module = module
        plain = dict(_codes(module.code()))
        places = {(code.co_qualname, code.co_firstlineno): place for place, code in plain.items()}
        self._plain = plain
        self._functions: dict[tuple[str, int], list[FunctionType]] = defaultdict(list)
        for made in gc.get_objects():
            if isinstance(made, FunctionType) and made.__code__.co_filename == module.name:
                place = places.get((made.__code__.co_qualname, made.__code__.co_firstlineno))
                if place is not None:
                    self._functions[place].append(made)

    def _changed(self, mutant: Mutant) -> Iterator[tuple[FunctionType, CodeType]]:
        for place, code in _codes(self._module.code(mutant)):
            if code != self._plain.get(place):
                for function in self._functions.get(place, ()):
                    yield function, code

    def fits(self, mutant: Mutant) -> bool:
        """Whether a mutant changes code of functions that exist, and none of their closures."""
        changed = list(self._changed(mutant))
        return bool(changed) and all(len(code.co_freevars) == len(function.__code__.co_freevars) for function, code in changed)

    def make(self, mutant: Mutant) -> None:
        """Put the mutant's code in place."""
        for function, code in self._changed(mutant):
            function.__code__ = code


def _codes(code: CodeType) -> Iterator[tuple[tuple[str, int], CodeType]]:
    """All code within a module's, by name and a number among those of that name."""
    numbers: dict[str, int] = defaultdict(int)
    waiting = [code]
    while waiting:
        for inner in waiting.pop().co_consts:
            if isinstance(inner, CodeType):
                yield (inner.co_qualname, numbers[inner.co_qualname]), inner
                numbers[inner.co_qualname] += 1
                waiting.append(inner)


def _for_other_processes(file: str, mutant: Mutant) -> None:
    """Let processes that are started from now on import the mutant."""
    os.environ[MUTANT] = json.dumps({"file": file, "number": mutant.number})
    os.environ["PYTHONPATH"] = os.pathsep.join([str(SITE), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])


@contextmanager
def _traced(name: str) -> Iterator[set[int]]:
    """The lines of a file that are reached in this context, in any thread."""
    lines: set[int] = set()

    def local(frame: FrameType, event: str, value: object) -> Any:
        lines.add(frame.f_lineno)
        return local

    def trace(frame: FrameType, event: str, value: object) -> Any:
        if frame.f_code.co_filename != name:
            return None
        lines.add(frame.f_lineno)
        return local

    threading.settrace(trace)
    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]


_STARTED: list[str] = []
"""Programs that this process starts."""


@contextmanager
def _starting_processes() -> Iterator[list[str]]:
    """The processes that are started as `sys.executable` in this context."""
    if not _STARTED:
        _STARTED.append("")
        sys.addaudithook(lambda event, given: _STARTED.append(str(given[0])) if event == "subprocess.Popen" else None)
    found: list[str] = []
    num_before = len(_STARTED)
    yield found
    found += [name for name in _STARTED[num_before:] if "python" in name]


def _is_ours(cached: Any) -> bool:
    code = getattr(getattr(cached, "__wrapped__", None), "__code__", None)
    return code is not None and code.co_filename.startswith(str(ROOT))
