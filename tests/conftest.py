"""Shared parts of the tests."""

import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, distributions
from pathlib import Path

import pytest

# More threads than free cores make torch on a CPU slower by far; the models here are tiny.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@dataclass(frozen=True)
class Said:
    """What a command line answered."""

    code: int
    out: str
    err: str

    @property
    def problems(self) -> list[str]:
        """The lines for the user, without the prefix that each must have."""
        lines = self.err.splitlines()
        assert all(line.startswith("hub: ") for line in lines), self.err
        return [line.removeprefix("hub: ") for line in lines]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Runs a command line in this process, in an empty folder (`tmp_path`)."""
    from hub.cli.main import main

    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> Said:
        capsys.readouterr()
        code = main(words)
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return call


class PluginFolder:
    """A folder with small distributions that have an entry point for the hub, as pip would install them.

    With the folder on the path (`PYTHONPATH`, or `sys.path` in this process) the hub finds them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()

    def add(self, name: str, source: str, distribution: str = "", module: str = "") -> str:
        """Write a distribution with a module of this source. Returns the module's name, new for each test."""
        module = module or f"{name}_{uuid.uuid4().hex[:8]}"
        distribution = distribution or f"dist-{name}"
        package = self.path / module
        package.mkdir(exist_ok=True)
        (package / "__init__.py").write_text(source, encoding="utf-8")
        info = self.path / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n", encoding="utf-8")
        (info / "entry_points.txt").write_text(f"[hub]\n{name} = {module}\n", encoding="utf-8")
        return module

    @property
    def entry_points(self) -> list[EntryPoint]:
        """What importlib finds in this folder alone."""
        return [point for dist in distributions(path=[str(self.path)]) for point in dist.entry_points if point.group == "hub"]


@pytest.fixture
def plugin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], PluginFolder]:
    """Makes folders for plugins, on this process's path."""

    def make(name: str = "site") -> PluginFolder:
        folder = PluginFolder(tmp_path / name)
        monkeypatch.syspath_prepend(str(folder.path))
        return folder

    return make


NAMED_ONLY = [Path(__file__).parent / name for name in ("packaging", "snippets")]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """What runs only when it is named: tests/packaging takes minutes and a package index, tests/snippets is for `make docs`."""
    named = [Path(argument.split("::")[0]).absolute() for argument in config.args]
    asked = any(collection_path in (path, *path.parents) for path in named)
    return True if collection_path in NAMED_ONLY and not asked else None
