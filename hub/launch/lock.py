"""The lock of a run folder, `lock.json`: one process at a time trains in it.

It is made by hard links and renames, which are atomic on NFS too. The holder is known by host, process id and the time of its
start, so a dead one does not keep it. Of another machine nothing but the file can be seen: its holder touches it, and one that
has not been touched for `SILENT_SECONDS` is taken for dead. Times are those of the file server, as clocks differ.
"""

import json
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from uuid import uuid4

from hub.errors import ConfigError, can_not_write
from hub.system.processes import Process, has_on_its_command_line, here

NAME = "lock.json"
BEAT_SECONDS, SILENT_SECONDS = 15.0, 120.0
"""How often a holder touches its lock, and the silence after which one on another machine is taken for dead."""
PATIENCE_SECONDS = 15.0
"""Time that workers of a dead launcher get to end, before a new run is refused."""
BREAK_SECONDS = 30.0
"""Age at which the mark of a process that removes a dead holder's lock is that of a process that died at it."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who has the lock: the content of lock.json."""

    host: str
    machine: str
    """Where its process can be looked up, by `here`."""

    process: str
    """The process, as `Process` writes it."""

    since: str
    token: str
    """Different each time that the lock is taken."""

    @classmethod
    def of(cls, folder: Path) -> "Holder | None":
        """The holder of a folder's lock, dead or alive. None: there is no lock."""
        try:
            values = json.loads((folder / NAME).read_text(encoding="utf-8"))
            return cls(**{name: str(values.get(name, "")) for name in ("host", "machine", "process", "since", "token")})
        except OSError:
            return None
        except (ValueError, AttributeError):  # not written by the hub, or damaged: an unknown machine's
            return cls(host="an unknown machine", machine="", process="", since="", token="")

    @property
    def is_here(self) -> bool:
        """Whether it is a process of this machine."""
        return self.machine == here()

    def is_alive(self, folder: Path) -> bool:
        """Whether it may still write into the folder."""
        if self.is_here:
            return Process.parse(self.process).is_alive or has_on_its_command_line(folder)
        with suppress(OSError):
            return _server_time(folder) - (folder / NAME).stat().st_mtime < SILENT_SECONDS
        return False

    def __str__(self) -> str:
        return f"process {self.process.partition(' ')[0] or '?'} on {self.host}, since {self.since or '?'}"


class Lock:
    """The lock of one run folder, held by this process until `release`."""

    def __init__(self, folder: Path) -> None:
        """Take the lock.

        Args:
            folder: the run folder.

        Raises:
            ConfigError: another process holds it, or the folder can't be written.
        """
        self.folder, self._ended = folder, threading.Event()
        self._me = Holder(
            host=socket.gethostname(),
            machine=here(),
            process=str(Process.this()),
            since=f"{datetime.now():%Y-%m-%d %H:%M:%S}",
            token=uuid4().hex,
        )
        try:
            self._take()
        except OSError as error:
            raise can_not_write(folder.parent, error) from None
        threading.Thread(target=self._beat, name="lock", daemon=True).start()

    def release(self) -> None:
        """Give the lock back. If it is another's by now, nothing is done."""
        self._ended.set()
        holder = Holder.of(self.folder)
        if holder is not None and holder.token == self._me.token:
            with suppress(OSError):
                (self.folder / NAME).unlink()

    def _take(self) -> None:
        patient_until = time.monotonic() + PATIENCE_SECONDS
        while not _put(self.folder / NAME, json.dumps(asdict(self._me))):
            holder = Holder.of(self.folder)
            if holder is None:  # it was released just now
                continue
            if not holder.is_alive(self.folder):
                _remove(self.folder, holder)
                continue
            if not holder.is_here or Process.parse(holder.process).is_alive or time.monotonic() > patient_until:
                raise ConfigError(_held(self.folder, holder))
            time.sleep(0.5)  # its launcher was killed, and its workers are about to end

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with suppress(OSError):
                os.utime(self.folder / NAME)


def _held(folder: Path, holder: Holder) -> str:
    line = f"{folder}: another process runs in this folder ({holder}). Wait for its end, or stop it there"
    if holder.is_here:
        return line
    return f"{line}. If it is dead, the folder is free {SILENT_SECONDS / 60:.0f} minutes after its last sign of life"


def _put(file: Path, text: str) -> bool:
    """Make a file with its whole content, if there is none of its name. Returns whether it was made."""
    aside = file.with_name(f".{file.name}.{uuid4().hex}")
    try:
        aside.write_text(text, encoding="utf-8")
        try:
            os.link(aside, file)
        except FileExistsError:
            return os.stat(aside).st_nlink == 2  # NFS: it was made, and the answer was lost
        except OSError:  # a file system without hard links
            return _put_exclusively(file, text)
        return True
    finally:
        aside.unlink(missing_ok=True)


def _put_exclusively(file: Path, text: str) -> bool:
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        return False
    return True


def _remove(folder: Path, dead: Holder) -> None:
    """Remove the lock of a dead holder. One process at a time does: another may have taken the lock by then."""
    mark = folder / ".lock-removed"
    if not _put(mark, ""):
        with suppress(OSError):
            if _server_time(folder) - mark.stat().st_mtime > BREAK_SECONDS:
                mark.unlink(missing_ok=True)
        time.sleep(0.1)
        return
    try:
        if Holder.of(folder) == dead:
            (folder / NAME).unlink(missing_ok=True)
    finally:
        mark.unlink(missing_ok=True)


def _server_time(folder: Path) -> float:
    """The time by the clock that dates the files of a folder."""
    probe = folder / f".time.{uuid4().hex}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


_held_here: dict[Path, Lock] = {}


def hold(folder: Path) -> None:
    """Take the lock of a run folder, until `release` or the end of this process.

    Raises:
        ConfigError: another process holds it, or another thread of this one. One line says who.
    """
    if folder in _held_here:
        raise ConfigError(f"{folder}: another thread of this process runs in this folder. Wait for its end")
    _held_here[folder] = Lock(folder)


def release(folder: Path) -> None:
    """Give the lock of a run folder back. Without one, do nothing."""
    if (lock := _held_here.pop(folder, None)) is not None:
        lock.release()
