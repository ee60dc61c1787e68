"""Command lines of the hub in forked processes: torch and the hub are imported once, and writes can be made to fail."""

import ctypes
import errno
import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("failing_writes.c")
LIMIT_SECONDS = 90.0
"""After so long a process is said to hang, and killed."""


@dataclass(frozen=True)
class Fault:
    """System calls that fail."""

    error: int
    """As `errno.ENOSPC`."""

    first: int
    """Number of the first writing call below the folder that fails, from 0 on."""

    count: int
    """How many fail. -1: all from the first on."""


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int | None
    """None: it hung, and was killed."""

    out: str
    err: str
    calls: tuple[str, ...] = ()
    """The writing calls below the folder, in order: create, write, fsync, rename, ..."""


def preloaded() -> bool:
    """Make sure that this process has the library of failing writes, by starting it again if need be. False: no compiler."""
    if "faults_arm" in os.environ.get("HUB_FAULTS", ""):
        return True
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        return False
    library = Path(tempfile.mkdtemp(prefix="hub-faults-")) / "failing_writes.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"], check=True)
    module = sys.modules["__main__"].__spec__
    assert module is not None
    name = module.name.removesuffix(".__main__")
    env = os.environ | {"LD_PRELOAD": str(library), "HUB_FAULTS": "faults_arm", "OMP_NUM_THREADS": "1"}
    os.execve(sys.executable, [sys.executable, "-m", name, *sys.argv[1:]], env)


class Forks:
    """Runs command lines in forks of this process."""

    def __init__(self) -> None:
        from tests.warm.server import imported

        imported()
        gc.collect()
        gc.freeze()  # else each fork would go through all that was imported, and so copy it
        self._library: Any = None
        if "LD_PRELOAD" in os.environ:
            self._library = ctypes.CDLL(os.environ["LD_PRELOAD"])
            self._library.faults_name.restype = ctypes.c_char_p
            self._library.faults_calls.restype = ctypes.c_long

    def run(
        self,
        words: Sequence[str],
        folder: Path,
        fault: Fault | None = None,
        prepare: Callable[[], None] | None = None,
        forked: Callable[[], None] | None = None,
    ) -> Ended:
        """Run `python -m hub WORDS` in a folder.

        Args:
            words: of the command line.
            folder: in which it is typed, and below which writes are counted.
            fault: the writes that fail.
            prepare: called in the fork before the hub.
            forked: called here when it is forked.
        """
        if self._library is not None:
            fails = fault or Fault(errno.EIO, 10**9, 0)
            self._library.faults_arm(f"{folder}/".encode(), fails.error, ctypes.c_long(fails.first), ctypes.c_long(fails.count))
        process = self.start(words, folder, "it", prepare)
        if forked is not None:
            forked()
        ended = process.wait()
        if self._library is None:
            return ended
        self._library.faults_disarm()
        names = (self._library.faults_name(number).decode() for number in range(self._library.faults_calls()))
        return replace(ended, calls=tuple(names))

    def start(self, words: Sequence[str], folder: Path, name: str, prepare: Callable[[], None] | None = None) -> "Process":
        """Start `python -m hub WORDS` in a folder.

        Args:
            words: of the command line.
            folder: in which it is typed.
            name: of its outputs, which lie beside the folder.
            prepare: called in the fork before the hub.
        """
        outputs = [folder.parent / f"{folder.name}.{name}.{stream}" for stream in ("out", "err")]
        child = os.fork()
        if child == 0:
            _become(words, folder, outputs, prepare)
        return Process(child, outputs)


class Process:
    """A forked process."""

    def __init__(self, number: int, outputs: Sequence[Path]) -> None:
        self._number, self._outputs = number, outputs

    def wait(self) -> Ended:
        """Wait for its end."""
        code = _wait(self._number)
        out, err = (file.read_text(encoding="utf-8", errors="replace") for file in self._outputs)
        for file in self._outputs:
            file.unlink()
        return Ended(code, out, err)


def stopped_at_step(step: int) -> Callable[[], None]:
    """Return a function that, called before a run begins, makes it end after one of its steps as if a signal had come."""

    def prepare() -> None:
        from hub.train import loop

        seen = iter(range(1, 10**9))
        loop.stop_requested = lambda: 15 if next(seen) == step else None  # type: ignore[attr-defined]

    return prepare


def _become(words: Sequence[str], folder: Path, outputs: Sequence[Path], prepare: Callable[[], None] | None) -> None:
    code = 70
    try:
        os.setsid()
        os.environ.pop("LD_PRELOAD", None)  # what it starts is not counted
        os.chdir(folder)
        for number, file in enumerate(outputs, 1):
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, number)
            os.close(descriptor)
        if prepare is not None:
            prepare()
        sys.argv = ["hub", *words]
        from hub.cli.main import main

        code = main(words)
        sys.stdout.flush()
        sys.stderr.flush()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _wait(child: int) -> int | None:
    end = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None
