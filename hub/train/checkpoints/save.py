"""One save of a checkpoint. Its folder is either complete or absent.

It is written to `.step-00000010.partial/`. Each process writes, flushes and hashes its own parts. Once all parts exist, rank 0
writes `model/` and last the manifest with size and sha256 of each file. Then the folder is renamed, and checkpoints older than
the newest `keep` are removed, except the best. All is brought to disk in that order (fsync), so that a power loss at any moment
leaves the checkpoint before or the new one, whole, and keeps the new one once it was reported.
"""

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

from hub.parallel.group import Group
from hub.parallel.sharded_tensors import StoredTensors, write_shards
from hub.result import METRICS
from hub.system.files import sync_file, sync_folder, write_json
from hub.train.checkpoints.checkpoint import MANIFEST, Files, checkpoint_name, remove, remove_old, seal
from hub.train.checkpoints.cpu_copies import Key
from hub.train.checkpoints.snapshot import Snapshot

SaveModel = Callable[[Path, dict[str, torch.Tensor]], None]

SECONDS_FOR_PARTS = 10.0
"""How long rank 0 waits for the other ranks' parts after the run has failed."""


class Saved(NamedTuple):
    """The result of a save. Equal on all ranks, except for the text of `failure`."""

    step: int
    path: Path | None
    """The checkpoint's folder. None if it could not be written; then no partial folder is left."""

    failure: str = ""
    """Why it could not be written, for example a full disk."""

    seconds_waited: float = 0.0
    """How long training was blocked until it was written."""


class Save:
    """One process's part of one save. It never communicates with other processes, so a thread can run it."""

    def __init__(self, snapshot: Snapshot, folder: Path, group: Group, save_model: SaveModel, keep: int) -> None:
        name = checkpoint_name(snapshot.step)
        self.snapshot, self.folder, self.group = snapshot, folder, group
        self.aside, self.target = folder / f".{name}.partial", folder / name
        self._save_model, self._keep = save_model, keep
        self._metrics = folder.parent / METRICS
        self.failure = ""
        self.finishing = group.world == 1
        """Whether the second half of the save has begun. A single process does both halves at once."""

        self._files: Files = {}
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Create the empty folder on rank 0. The other ranks write to it after a collective confirms that it exists."""
        if self.group.is_main:
            self._try(self._make_folder)

    def run(self, copied: Callable[[], None] = lambda: None) -> None:
        """Write this process's parts. A single process also completes the checkpoint.

        Args:
            copied: waits until the snapshot is complete.
        """
        self._try(copied, self._write_parts)
        if self.group.world == 1:
            self.finish()

    def finish(self) -> None:
        """Complete the checkpoint, on rank 0. All parts must exist."""
        self.finishing = True
        if self.group.is_main and not self.failure:
            self._try(self._finish)

    def in_thread(self, work: Callable[[], None]) -> None:
        """Run a step of the save (`run`, `finish`) in a thread."""
        self._thread = threading.Thread(target=work, name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def join(self) -> None:
        """Wait for the thread."""
        if self._thread is not None:
            self._thread.join()

    def other_parts_exist(self) -> bool:
        """Whether the other ranks' parts exist, within `SECONDS_FOR_PARTS`."""
        lists = [self.aside / _list_name(rank) for rank in range(1, self.group.world)]
        deadline = time.monotonic() + SECONDS_FOR_PARTS
        while not all(file.is_file() for file in lists):
            if self.failure or time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def result(self, failed: bool) -> Saved:
        """The result of the save. Removes the partial folder of a failed one."""
        if not failed:
            return Saved(self.snapshot.step, self.target)
        if self.group.is_main:
            shutil.rmtree(self.aside, ignore_errors=True)
        return Saved(self.snapshot.step, None, self.failure or "another rank could not write its part")

    def _try(self, *parts: Callable[[], None]) -> None:
        try:
            for part in parts:
                part()
        except Exception as error:  # safetensors raises its own exception for a full disk
            self.failure = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"

    def _make_folder(self) -> None:
        for left in self.folder.glob(".step-*"):  # of a save, or a removal, that was interrupted
            shutil.rmtree(left, ignore_errors=True)
        self.aside.mkdir(parents=True)

    def _write_parts(self) -> None:
        rank, snapshot, aside = self.group.rank, self.snapshot, self.aside
        mine = [aside / f"random-rank{rank}.safetensors"]
        save_file(snapshot.random, mine[0])
        for part in ("trainable", "optimizer"):
            if snapshot.is_sharded:
                mine.append(aside / part / f"rank{rank:05d}.safetensors")
                mine[-1].parent.mkdir(exist_ok=True)
                offsets = {key[1]: start for key, start in snapshot.offsets.items() if key[0] == part}
                write_shards(mine[-1], snapshot.part(part), offsets)
            elif self.group.is_main:
                mine.append(aside / f"{part}.safetensors")
                save_file(snapshot.part(part), mine[-1])
        if self.group.is_main:
            mine += [aside / "optimizer.json", aside / "state.json"]
            write_json(mine[-2], snapshot.numbers)
            write_json(mine[-1], snapshot.state)
        self._files = seal(aside, mine)
        if not self.group.is_main:
            write_json(aside / _list_name(rank), self._files)

    def _finish(self) -> None:
        self._save_model(self.aside / "model", self._weights())
        files = self._files | seal(self.aside, [path for path in (self.aside / "model").rglob("*") if path.is_file()])
        for rank in range(1, self.group.world):
            listed = self.aside / _list_name(rank)
            files |= json.loads(listed.read_text(encoding="utf-8"))
            listed.unlink()
        for inner in [path for path in self.aside.rglob("*") if path.is_dir()]:
            sync_folder(inner)
        write_json(self.aside / MANIFEST, {"files": dict(sorted(files.items()))})
        sync_folder(self.aside)
        if self._metrics.is_file():
            sync_file(self._metrics)
        before = self.target.with_name(f"{self.target.name}-before")  # one of the same step stays until this one is there
        if self.target.exists():
            remove(before)
            self.target.rename(before)
        self.aside.rename(self.target)
        sync_folder(self.folder)
        sync_folder(self.folder.parent)  # of the first one, and for plan.json
        if before.exists():
            remove(before)
        remove_old(self.folder, self._keep)

    def _weights(self) -> dict[str, torch.Tensor]:
        """The model's full weights, on the CPU. Sharded ones are read back from the files of all ranks."""
        stored = StoredTensors(self.aside, "trainable") if self.snapshot.is_sharded else None
        weights: dict[Key, torch.Tensor] = {}
        for key in set(self.snapshot.weights.values()):
            if stored is not None and key[0] == "trainable":
                weights[key] = stored.read(key[1])
            else:
                weights[key] = self.snapshot.tensors[key].cpu()
        return {name: weights[key] for name, key in self.snapshot.weights.items()}


def _list_name(rank: int) -> str:
    return f"written-by-rank{rank}.json"
