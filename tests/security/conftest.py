"""Hostile fixtures: each tries to create a file, the canary, which must never exist."""

import shutil
from pathlib import Path

import pytest

from hub.testing import tiny_model_path


class Canary:
    """The file, and content that makes it when it is loaded or imported."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pickle = f"cos\nsystem\n(S'touch {path}'\ntR.".encode()
        self.module = f"open({str(path)!r}, 'w').close()\n"

    def appeared(self) -> bool:
        return self.path.exists()


@pytest.fixture
def canary(tmp_path: Path) -> Canary:
    return Canary(tmp_path / "canary")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny model, to be made hostile."""
    return Path(shutil.copytree(tiny_model_path("llama"), tmp_path / "model"))
