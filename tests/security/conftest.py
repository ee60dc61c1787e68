import shutil
from pathlib import Path

import pytest

from hub.testing import tiny_model_path

from .hostile import Canary


@pytest.fixture
def canary(tmp_path: Path) -> Canary:
    return Canary(tmp_path / "canary")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny model to be made hostile."""
    return Path(shutil.copytree(tiny_model_path("llama"), tmp_path / "model"))
