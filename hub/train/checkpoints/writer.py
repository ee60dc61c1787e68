"""Writes checkpoints while training continues. At most one save is in flight.

    main thread   save: copy the state | step | step: all parts written? | step | step: complete? -> "checkpoint PATH"
    thread                 | this process's parts                        | rank 0: model/, manifest, rename |

Only the main threads communicate: at the end of each step, about the save in flight.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from hub.parallel.group import sum_over_ranks
from hub.parallel.session import Session
from hub.system.memory import free_host_memory
from hub.train.checkpoints.cpu_copies import CpuCopies, num_bytes
from hub.train.checkpoints.save import Save, Saved, SaveModel
from hub.train.checkpoints.snapshot import Snapshot, take_snapshot

ROOM = 1.25
"""Free memory that copies need, as a multiple of their size: the model in its stored dtype is extra."""


class CheckpointWriter:
    """Writes one process's part of a run's checkpoints. All ranks must call the same methods in the same order."""

    def __init__(
        self,
        folder: Path,
        session: Session,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        save_model: SaveModel,
        keep: int,
        say: Callable[[str], None],
    ) -> None:
        """Prepare to save a training state.

        Args:
            folder: the run's `checkpoints/`.
            session: ranks and device.
            model: its trained weights are stored by name.
            optimizer: its state is stored by parameter name.
            save_model: writes the model that a user loads to a folder, from full weights on the CPU. Called on rank 0 in a
                thread while the model trains: it must not change the model.
            keep: number of newest checkpoints to keep; the best one is kept too.
            say: receives a line if saves must block training for lack of memory.
        """
        self._folder, self._session, self._model, self._optimizer = folder, session, model, optimizer
        self._save_model, self._keep, self._say = save_model, keep, say
        self._copies = CpuCopies()
        self._overlaps: bool | None = None
        self._save: Save | None = None
        optimizer.register_step_pre_hook(self._copies.before_change)

    def prepare(self) -> None:
        """Allocate the memory for copies before the first save, once the optimizer has its state. Later calls do nothing."""
        if self._overlaps is None and self._optimizer.state:
            self._allocate(take_snapshot(0, {}, self._session, self._model, self._optimizer))

    def save(self, step: int, state: dict[str, object], wait: bool = False) -> Saved | None:
        """Start a save. None may be in flight: call `wait` first.

        Args:
            step: number of the last finished step.
            state: everything else that a resume needs, as JSON. `score`, if present, decides which checkpoint is best.
            wait: whether to wait until it is written.

        Returns:
            The result of the save, if it is known already.
        """
        snapshot = take_snapshot(step, state, self._session, self._model, self._optimizer)
        save = Save(snapshot, self._folder, self._session.group, self._save_model, self._keep)
        save.begin()
        num_failed, num_without = sum_over_ranks(float(bool(save.failure)), float(not self._copies.fits(snapshot.in_use)))
        if num_failed:
            return save.result(failed=True)
        if num_without and not wait and self._overlaps is not False:
            self._allocate(snapshot)
            if self._overlaps:
                (num_without,) = sum_over_ranks(float(not self._copies.fits(snapshot.in_use)))
                self._overlaps = not num_without
                if num_without:
                    self._say("a copy of the training state could not be allocated: training stands still during a save")
        self._save = save
        if num_without:
            save.run()
            return self.wait()
        save.snapshot = snapshot.copied(self._copies)
        save.in_thread(lambda: save.run(copied=self._copies.wait))
        return self.wait() if wait else None

    def poll(self) -> Saved | None:
        """The result of the save in flight, once it is known. Call it at the end of each step."""
        return self._advance(self._save) if self._save is not None else None

    def wait(self) -> Saved | None:
        """Wait for the save in flight. Returns its result, or None if there was none."""
        begun, saved = time.monotonic(), None
        while self._save is not None:
            self._save.join()
            saved = self._advance(self._save)
        return saved._replace(seconds_waited=time.monotonic() - begun) if saved is not None else None

    def close(self) -> Saved | None:
        """Finish this process's part and free the memory. Safe after an error: it does not communicate with other ranks.

        Returns:
            The result of the save in flight. None if there was none, or if another rank's part is missing.
        """
        save, self._save = self._save, None
        saved = None
        if save is not None:
            save.join()
            if not save.finishing and self._session.group.is_main and save.other_parts_exist():
                save.finish()
            saved = save.result(bool(save.failure)) if save.finishing else None
        self._copies.release()
        return saved

    def _advance(self, save: Save) -> Saved | None:
        """Start the second half of the save in flight once all ranks have finished the first."""
        num_running, num_failed = sum_over_ranks(float(save.running), float(bool(save.failure)))
        if num_running:
            return None
        if num_failed or save.finishing:
            self._save = None
            return save.result(bool(num_failed))
        save.finishing = True
        if self._session.group.is_main:
            save.in_thread(save.finish)
        return None

    def _allocate(self, snapshot: Snapshot) -> None:
        """Allocate memory for copies, if the machines of all ranks have enough."""
        self._copies.release()
        group, needed, free = self._session.group, num_bytes(snapshot.tensors), free_host_memory()
        (total,) = sum_over_ranks(float(needed))
        on_machine = max(needed, total * int(os.environ.get("LOCAL_WORLD_SIZE", "1")) / group.world)
        (num_short,) = sum_over_ranks(float(on_machine * ROOM > free))
        self._overlaps = not num_short
        if self._overlaps:
            self._copies.allocate(snapshot.in_use)
        else:
            self._say(
                f"this machine has {free / 2**30:.1f} GB of memory free, too little for a copy of the training state "
                f"({on_machine / 2**30:.1f} GB): training stands still while a checkpoint is written"
            )
