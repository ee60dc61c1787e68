"""What the tests of the hub and those of its plugins share: processes that do not pay for their imports."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

WARM = Path(__file__).parent / "tests" / "warm"


@pytest.fixture(scope="session")
def _warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path | None]:
    """A file that can be started as Python is, see tests/warm/server.py. None where that is not to be had."""
    from hub.system.gpus import num_visible_gpus

    if sys.platform != "linux" or num_visible_gpus():  # a process that was forked can't begin to use a GPU
        yield None
        return
    folder = tmp_path_factory.mktemp("warm")
    text = (WARM / "client.py").read_text(encoding="utf-8")
    text = text.replace("@address@", str(folder / "socket")).replace("@python@", sys.executable)
    (folder / "python").write_text(f"#!{sys.executable} -IS\n{text}", encoding="utf-8")
    (folder / "python").chmod(0o755)
    command = [sys.executable, str(WARM / "server.py"), str(folder / "socket")]
    one_thread = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=os.environ | one_thread, start_new_session=True) as server:
        while not (folder / "socket").exists() and server.poll() is None:
            time.sleep(0.01)
        yield folder / "python"
        server.stdin.close()  # type: ignore[union-attr]


def _stand_in(_warm: Path | None) -> Iterator[str]:
    """Processes that are started as `sys.executable`, and those that they start, find torch and the hub imported.

    For tests of what such processes do; not of when they import what, nor of several that are killed at once, nor of how one
    ends whose parent is gone. The value is the real interpreter, for these.
    """
    real = sys.executable
    sys.executable = str(_warm or real)
    yield real
    sys.executable = real


warm_python = pytest.fixture(scope="module", name="warm_python")(_stand_in)
warm_python_here = pytest.fixture(name="warm_python_here")(_stand_in)
