"""What a disk may hold after a power loss: a recorder of file operations, and all states that a file system may show then.

Only what was brought to disk (fsync) is certain. The content of a file that was written since may be the old one, the new
one, half of it or nothing. A name that was made, moved or removed since its folder was last brought to disk may be there or
not, each independently of all others: file systems may reorder them.
"""

import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, combinations
from pathlib import Path

Event = tuple[str, ...]
"""mkdir PATH, write PATH CONTENT, rename FROM TO, remove PATH, fsync PATH, mark NAME. Paths are relative."""

_recorders: list["Recorder"] = []
MOST_SUBSETS = 64


class Recorder:
    """Records what this process does to the files below a folder.

    The calls that make, move and remove names report themselves to Python's audit hooks. What is written, by safetensors too,
    which is not Python, is seen by comparing the files at each such call.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.events = root, []
        self._seen: dict[str, tuple[int, int, int]] = {}
        self._look()
        self.events.clear()

    def mark(self, name: str) -> None:
        self._look()
        self.events.append(("mark", name))

    def called(self, kind: str, *paths: str) -> None:
        """Record a call that is about to be made."""
        if all(Path(path).is_relative_to(self.root) for path in paths):
            self._look()
            self.events.append((kind, *(os.path.relpath(path, self.root) for path in paths)))
            if kind == "rename":
                old, new = self.events[-1][1:]
                for name in [name for name in self._seen if name == old or name.startswith(f"{old}/")]:
                    self._seen[new + name[len(old) :]] = self._seen.pop(name)

    def _look(self) -> None:
        """Record what was written since the last look."""
        now: dict[str, tuple[int, int, int]] = {}
        for folder, _, names in os.walk(self.root):
            for name in names:
                file = os.path.join(folder, name)
                status = os.stat(file)
                now[os.path.relpath(file, self.root)] = (status.st_ino, status.st_size, status.st_mtime_ns)
        for name, status in now.items():
            if self._seen.get(name) != status:
                self.events.append(("write", name, (self.root / name).read_bytes()))
        self._seen = now


def _audit(event: str, arguments: tuple) -> None:
    if not _recorders:
        return
    kinds = {"os.mkdir": "mkdir", "os.rename": "rename", "os.remove": "remove", "os.rmdir": "remove"}
    if event in kinds:
        paths = arguments[:2] if event == "os.rename" else arguments[:1]
        at = arguments[2:] if event == "os.rename" else arguments[-1:]
        at = [*at, *at][: len(paths)] if event != "os.rename" else list(at)
        full = [_absolute(os.fsdecode(path), number) for path, number in zip(paths, at, strict=True)]
        for recorder in list(_recorders):
            recorder.called(kinds[event], *full)


def _absolute(path: str, folder: int) -> str:
    return os.path.join(os.readlink(f"/proc/self/fd/{folder}") if folder >= 0 else os.getcwd(), path)


@contextmanager
def recording(root: Path) -> Iterator[Recorder]:
    """Record the file operations below a folder."""
    if not hasattr(sys, "_power_loss"):
        sys._power_loss = True
        sys.addaudithook(_audit)  # it stays for good, and does nothing without a recorder
    recorder, real = Recorder(root), os.fsync

    def fsync(file) -> None:
        number = file if isinstance(file, int) else file.fileno()
        real(number)
        recorder.called("fsync", os.readlink(f"/proc/self/fd/{number}"))

    os.fsync = fsync
    _recorders.append(recorder)
    try:
        yield recorder
    finally:
        _recorders.remove(recorder)
        os.fsync = real


@dataclass
class Change:
    """Names that change at once: number of a folder -> name -> number of what has it now, or None."""

    names: dict[int, dict[str, int | None]]
    unsynced: set[int]
    """Folders of these that were not brought to disk since."""


@dataclass
class Disk:
    """A file system that knows what is certain."""

    folders: dict[int, dict[str, int]] = field(default_factory=lambda: {0: {}})
    """As programs see them."""

    files: dict[int, bytes] = field(default_factory=dict)
    certain: dict[int, bytes] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)

    def apply(self, kind: str, path: str, *more) -> None:
        """Do what an event did. A call that had to fail did nothing."""
        if self._at(path if kind in ("rename", "remove", "fsync") else os.path.dirname(path)) is None:
            return
        if kind == "write":
            number = self._at(path)
            if number is None:
                number = self._new(path)
            self.files[number] = more[0]
        elif kind == "mkdir":
            self.folders[self._new(path)] = {}
        elif kind == "rename":
            self._change({path: None, more[0]: self._at(path)})
        elif kind == "remove":
            self._change({path: None})
        elif kind == "fsync":
            number = self._at(path)
            if number in self.folders:
                for change in self.changes:
                    change.unsynced.discard(number)
            else:
                self.certain[number] = self.files[number]

    def states(self) -> Iterator[dict[str, bytes]]:
        """What may be on the disk after a power loss now: path -> content of each file that can be reached."""
        pending = [number for number, change in enumerate(self.changes) if change.unsynced]
        for kept in _subsets(pending):
            folders: dict[int, dict[str, int]] = {number: {} for number in self.folders}
            for number, change in enumerate(self.changes):
                if number in pending and number not in kept:
                    continue
                for folder, names in change.names.items():
                    for name, target in names.items():
                        folders[folder].pop(name, None)
                        if target is not None:
                            folders[folder][name] = target
            reached = dict(_walk(folders, 0, ""))
            loose = [number for number in reached.values() if self.certain.get(number) != self.files[number]]
            for contents in self._contents(loose):
                yield {path: contents.get(number, self.files[number]) for path, number in reached.items()}

    def _contents(self, loose: list[int]) -> Iterator[dict[int, bytes]]:
        """What the files may hold that were written since they were brought to disk."""
        yield {}
        if loose:
            yield {number: self.certain.get(number, b"") for number in loose}
            yield {number: self._half(number) for number in loose}
            yield from ({number: self.certain.get(number, b"")} for number in loose)

    def _half(self, number: int) -> bytes:
        """A file of which a half was written: of what was added to its end, or of all."""
        new, old = self.files[number], self.certain.get(number, b"")
        sure = len(old) if new.startswith(old) else 0
        return new[: sure + (len(new) - sure) // 2]

    def _at(self, path: str) -> int | None:
        number: int | None = 0
        for part in Path(path).parts:
            number = self.folders[number].get(part) if number is not None else None
        return number

    def _new(self, path: str) -> int:
        number = 1 + max(chain(self.folders, self.files))
        self.files[number] = b""
        self._change({path: number})
        return number

    def _change(self, targets: dict[str, int | None]) -> None:
        names: dict[int, dict[str, int | None]] = {}
        for path, target in targets.items():
            folder, name = self._at(os.path.dirname(path)), os.path.basename(path)
            names.setdefault(folder, {})[name] = target
            self.folders[folder].pop(name, None)
            if target is not None:
                self.folders[folder][name] = target
        self.changes.append(Change(names, set(names)))


def _walk(folders: dict[int, dict[str, int]], number: int, prefix: str) -> Iterator[tuple[str, int]]:
    for name, target in folders[number].items():
        if target in folders:
            yield from _walk(folders, target, f"{prefix}{name}/")
        else:
            yield prefix + name, target


def _subsets(pending: list[int]) -> Iterator[set[int]]:
    """All subsets of a few changes. Of many: the first ones, each one alone, all but one, and some at random."""
    if 2 ** len(pending) <= MOST_SUBSETS:
        yield from (set(some) for size in range(len(pending) + 1) for some in combinations(pending, size))
        return
    for place, one in enumerate(pending):
        yield set(pending[:place])
        yield {one}
        yield set(pending) - {one}
    yield set(pending)
    chance = random.Random(0)
    for _ in range(MOST_SUBSETS):
        yield {one for one in pending if chance.random() < 0.5}


def crashes(events: list[Event]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """For each moment of a recording: the last mark before it, and each state that the disk may have then.

    Hidden files and folders are left out, and of equal states all but one.
    """
    disk, mark, seen = Disk(), "", set()
    for event in [*events, ("mark", "")]:
        for state in disk.states():
            visible = {path: content for path, content in state.items() if "/." not in path}
            key = (mark, frozenset(visible.items()))
            if key not in seen:
                seen.add(key)
                yield mark, visible
        if event[0] == "mark":
            mark = event[1] or mark
        else:
            disk.apply(*event)
