"""The small files of a run folder: each is written whole, and what a full disk refuses waits in memory until it is taken.

A run must not end because a line of metrics could not be written. Large files (models, checkpoints) are not written here.
"""

import errno
import os
import threading
from contextlib import suppress
from pathlib import Path

from hub.system.files import write_json
from hub.system.space import is_full

PASSES = (errno.EIO, errno.EROFS, errno.ESTALE, errno.ETIMEDOUT)
"""Errors of a disk or its server that may pass, beside a full disk."""


def may_pass(error: BaseException) -> bool:
    """Whether an error of a write is one of the disk, after which it is worth while to try again."""
    return is_full(error) or getattr(error, "errno", None) in PASSES or os.strerror(errno.EIO) in str(error)


class SmallFiles:
    """The small files that one process writes."""

    def __init__(self) -> None:
        self._lines: dict[Path, list[str]] = {}
        self._values: dict[Path, object] = {}
        self._lock = threading.RLock()

    @property
    def waiting(self) -> list[Path]:
        """The files of which something waits in memory."""
        return [*self._lines, *self._values]

    def latest(self, file: Path) -> object | None:
        """What waits to be written into a JSON file. None: the disk has it."""
        return self._values.get(file)

    def append(self, file: Path, line: str) -> OSError | None:
        """Append a line, with its end, to a file. Returns why it waits, or None if the file has it.

        Raises:
            OSError: it can't be written, and trying again would not help.
        """
        with self._lock:
            self._lines.setdefault(file, []).append(line)
            return self.flush()

    def write(self, file: Path, value: object) -> OSError | None:
        """Write a JSON file. Of several values that wait for one file the last counts. Returns and raises as `append` does."""
        with self._lock:
            self._values[file] = value
            return self.flush()

    def flush(self) -> OSError | None:
        """Write what waits, in the order in which it came for each file. Returns why something still waits, or None.

        Raises:
            OSError: something can't be written, and trying again would not help. It is given up.
        """
        refused: OSError | None = None
        with self._lock:
            for file in list(self._lines):
                refused = self._try(self._lines, file) or refused
            for file in list(self._values):
                refused = self._try(self._values, file) or refused
        return refused

    def probe(self, folder: Path) -> OSError | None:
        """Why nothing can be written into a folder. None: something can."""
        file = folder / f".probe-{os.getpid()}"
        try:
            file.write_bytes(bytes(4096))
        except OSError as error:
            return error
        finally:
            with suppress(OSError):
                file.unlink(missing_ok=True)
        return None

    def move(self, folder: Path) -> None:
        """Write what waits into another folder, with what the files have already.

        Raises:
            OSError: it can't be written there either.
        """
        with self._lock:
            folder.mkdir(parents=True, exist_ok=True)
            for file, lines in list(self._lines.items()):
                before = file.read_text(encoding="utf-8") if file.is_file() else ""
                (folder / file.name).write_text(before + "".join(lines), encoding="utf-8")
                del self._lines[file]
            for file, value in list(self._values.items()):
                write_json(folder / file.name, value)
                del self._values[file]

    def _try(self, waiting: dict[Path, list[str]] | dict[Path, object], file: Path) -> OSError | None:
        try:
            if waiting is self._lines:
                _append(file, "".join(self._lines[file]).encode())
            else:
                write_json(file, self._values[file])
        except OSError as error:
            if may_pass(error):
                return error
            del waiting[file]
            raise
        del waiting[file]
        return None


def _append(file: Path, data: bytes) -> None:
    """Append bytes to a file: all of them, or none."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    size = os.fstat(descriptor).st_size
    try:
        try:
            while data:
                data = data[os.write(descriptor, data) :]
        finally:
            os.close(descriptor)  # NFS may say only here that the disk is full
    except OSError:
        with suppress(OSError):
            os.truncate(file, size)
        raise


small_files = SmallFiles()
"""Those of this process."""
