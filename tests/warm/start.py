"""Starts `server.py`, and writes the file that stands in for the interpreter."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent


@contextmanager
def warm_python(folder: Path) -> Iterator[Path]:
    """A file that can be started as Python is, within this context.

    Args:
        folder: empty, for the file and a socket.
    """
    text = (HERE / "client.py").read_text(encoding="utf-8")
    text = text.replace("@address@", str(folder / "socket")).replace("@python@", sys.executable)
    (folder / "python").write_text(f"#!{sys.executable} -IS\n{text}", encoding="utf-8")
    (folder / "python").chmod(0o755)
    command = [sys.executable, str(HERE / "server.py"), str(folder / "socket")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as server:
        while not (folder / "socket").exists() and server.poll() is None:
            time.sleep(0.01)
        yield folder / "python"
        server.stdin.close()  # type: ignore[union-attr]
