"""The server that processes of tests are forked from: it has no threads, and without it they start as they always do."""

import subprocess
import sys
from pathlib import Path

import pytest
from warm.start import warm_python as warm_python_in


def loaded(tmp_path) -> str:
    """Whether a process of a test finds torch imported."""
    (tmp_path / "it.py").write_text("import sys; print('torch' in sys.modules)", encoding="utf-8")
    return subprocess.run([sys.executable, tmp_path / "it.py"], capture_output=True, text=True, check=True).stdout.strip()


def test_processes_are_forked_from_a_server_without_threads(tmp_path, warm_python_here):
    if sys.executable == warm_python_here:
        pytest.skip("only on Linux without a GPU")
    assert loaded(tmp_path) == "True"


def test_without_a_server_processes_start_as_they_always_do(tmp_path, monkeypatch):
    monkeypatch.setattr("warm.start.HERE", tmp_path)
    (tmp_path / "server.py").write_text("import sys; sys.exit(1)", encoding="utf-8")
    (tmp_path / "client.py").write_bytes(Path(__file__).with_name("client.py").read_bytes())
    (tmp_path / "warm").mkdir()
    with warm_python_in(tmp_path / "warm") as python:
        monkeypatch.setattr(sys, "executable", str(python))
        assert loaded(tmp_path) == "False"
