"""Which process is which: a process by its id and the time of its start, so that a later one with the same id is another."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process of this machine."""

    pid: int
    started: str
    """When it was started, as the system counts it. Empty: not known on this system."""

    @classmethod
    def this(cls) -> "Process":
        """The process that asks."""
        return cls(os.getpid(), _state_and_start(os.getpid())[1])

    @classmethod
    def parse(cls, text: str) -> "Process":
        """The process that `str` wrote. Process 0, which is none, if it can't be read."""
        pid, _, started = text.partition(" ")
        return cls(int(pid) if pid.isdecimal() else 0, started)

    def __str__(self) -> str:
        return f"{self.pid} {self.started}".rstrip()

    @property
    def is_alive(self) -> bool:
        """Whether it runs. One that has ended and that its parent has not asked about (a zombie) does not."""
        state, started = _state_and_start(self.pid)
        if state:
            return state not in "ZX" and (not self.started or self.started == started)
        if Path("/proc/self/stat").exists():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True


def here() -> str:
    """Where processes can see each other: this machine since its start, and within it this container.

    Two machines, or containers of one, may have the same host name, and their processes the same ids.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _state_and_start(pid: int) -> tuple[str, str]:
    """The state of a process as a letter, and its start: clock ticks since the machine's start, with the id of that start."""
    try:
        # The name, the second field, may have spaces and brackets. Fields 3 and 22: see man 5 proc_pid_stat.
        after_name = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return after_name[0], f"{after_name[19]}@{boot}"
    except (OSError, IndexError):
        return "", ""


def has_on_its_command_line(folder: Path) -> bool:
    """Whether a process of this machine has a folder on its command line, as the workers of a run have theirs."""
    return os.path.realpath(folder) in folders_on_command_lines(folder.name)


def folders_on_command_lines(name: str = "") -> set[str]:
    """The absolute paths on the command lines of this machine's processes, without links.

    Args:
        name: only those that end so.
    """
    found: set[str] = set()
    try:
        entries = [entry for entry in os.listdir("/proc") if entry.isdigit()]
    except OSError:  # no Linux
        return found
    for entry in entries:
        try:
            words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        found |= {os.fsdecode(word) for word in words if word.startswith(b"/")}
    return {os.path.realpath(path) for path in found if path.endswith(name)}
