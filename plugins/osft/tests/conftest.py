"""Shared parts of the tests of OSFT: runs on a tiny model."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hub import Interrupted, Result, compose
from hub.launch.launcher import launch
from hub.testing import tiny_model_path

OPTIONS = ["model=tiny", "data=tiny", "model.dtype=float32", "algo.learning_rate=1e-2", "algo.max_steps=6",
           "algo.effective_batch_size=8", "data.eval_fraction=0.1"]  # fmt: skip


@pytest.fixture
def cache(tmp_path, monkeypatch) -> dict[str, Path]:
    """A cache of the test's own; the tiny models stay where they are."""
    found = {family: tiny_model_path(family) for family in ("llama",)}
    monkeypatch.setenv("HUB_CACHE", str(tmp_path / "cache"))
    return found


def _run(tmp_path: Path, *overrides: str) -> Result:
    algo = [] if any(word.startswith("algo=") for word in overrides) else ["algo=osft"]
    return launch(compose(*algo, *OPTIONS, "launch=inline", f"output_dir={tmp_path / 'runs'}", *overrides))


@pytest.fixture
def run() -> Callable[..., Result]:
    """A run in this process: `run(tmp_path, *overrides)`."""
    return _run


@pytest.fixture
def run_and_stop(monkeypatch) -> Callable[..., None]:
    """Run until a stop signal that arrives in the third step: `run_and_stop(tmp_path, *overrides)`."""

    def call(tmp_path: Path, *overrides: str) -> None:
        from hub.train import loop

        seen = iter(range(1, 100))
        with monkeypatch.context() as patch:
            patch.setattr(loop, "stop_requested", lambda: signal.SIGTERM if next(seen) == 3 else None)
            with pytest.raises(Interrupted):
                _run(tmp_path, *overrides)

    return call


@pytest.fixture
def command() -> Callable[..., Result]:
    """A run from the command line, in processes of its own: `command(folder, *words)`."""

    def call(folder: Path, *words: str) -> Result:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        line = [sys.executable, "-m", "hub", *words, "algo=osft", *OPTIONS, f"output_dir={folder}"]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return Result.read(folder / "latest" / "result.json")

    return call
