"""What the tests of the hub and those of its plugins share: processes that do not pay for their imports."""

import gc
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from warm.start import warm_python as warm_python_in

gc.disable()  # the tests import a million objects, and the collector would look through them again and again


def pytest_collection_finish() -> None:
    """Let Python's collector look, but not through all that was imported: that takes a third of a second in each run."""
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def _warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path | None]:
    """A file that can be started as Python is, see tests/warm/server.py. None where that is not to be had."""
    from hub.system.gpus import num_visible_gpus

    if sys.platform != "linux" or num_visible_gpus():  # a process that was forked can't begin to use a GPU
        yield None
        return
    with warm_python_in(tmp_path_factory.mktemp("warm")) as python:
        yield python


def _stand_in(_warm: Path | None) -> Iterator[str]:
    """Processes that are started as `sys.executable`, and those that they start, find torch and the hub imported.

    For tests of what such processes do; not of when they import what, nor of several that are killed at once, nor of how one
    ends whose parent is gone. The value is the real interpreter, for these.
    """
    real = sys.executable
    sys.executable = str(_warm or real)
    yield real
    sys.executable = real


@pytest.fixture(autouse=True)
def measured_anew(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run of another test has measured counts in no test: some change what is measured."""
    folder = tmp_path_factory.getbasetemp() / "measured" / str(uuid.uuid4())
    monkeypatch.setattr("hub.system.answers.entries_folder", lambda: folder)


warm_python = pytest.fixture(scope="module", name="warm_python")(_stand_in)
warm_python_here = pytest.fixture(name="warm_python_here")(_stand_in)
