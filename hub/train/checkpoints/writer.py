"""Writes checkpoints while training goes on. One save is in flight at most.

    main thread   save: copy the state | step | step: all parts there? | step | step: is it whole? -> "checkpoint PATH"
    thread                 | this process's parts                      | rank 0: model/, manifest, rename |

Only the main threads talk to each other: at each step's end, about the save in flight.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hub.parallel.group import sum_over_ranks
from hub.parallel.session import Session
from hub.system.memory import free_host_memory
from hub.train.checkpoints.host_copies import HostCopies, num_bytes
from hub.train.checkpoints.save import Save, Saved, SaveModel
from hub.train.checkpoints.snapshot import Snapshot, take_snapshot

ROOM = 1.25
"""Free memory that copies need, as a multiple of their size: the model in the type that it is stored in comes besides."""


class CheckpointWriter:
    """A run's checkpoints, as one of its processes writes them. All ranks call the same methods in the same order."""

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
        """What to save, and where.

        Args:
            folder: the run's `checkpoints/`.
            session: ranks and device.
            model: its weights that train are stored by name.
            optimizer: its state is stored by parameter name.
            save_model: writes the model as a user loads it into a folder, from whole weights on the CPU. Called on rank 0
                in a thread while the model trains: it must not change the model.
            keep: newest checkpoints that stay; the best one stays besides.
            say: receives a line when saves have to stop training for want of memory.
        """
        self._folder, self._session, self._model, self._optimizer = folder, session, model, optimizer
        self._save_model, self._keep, self._say = save_model, keep, say
        self._copies = HostCopies()
        self._beside: bool | None = None
        self._save: Save | None = None
        optimizer.register_step_pre_hook(self._copies.before_change)

    def prepare(self) -> None:
        """Take the memory for copies ahead of the first save, once the optimizer has its state. Does nothing later on."""
        if self._beside is None and self._optimizer.state:
            self._take_memory(take_snapshot(0, {}, self._session, self._model, self._optimizer))

    def save(self, step: int, state: dict[str, Any], wait: bool = False) -> Saved | None:
        """Begin to save. None may be in flight: `wait` for it first.

        Args:
            step: number of the last finished step.
            state: what else is needed to go on; JSON. `eval_loss`, where present, tells which checkpoint is best.
            wait: until it is written.

        Returns:
            How it ended, where that is known by now.
        """
        snapshot = take_snapshot(step, state, self._session, self._model, self._optimizer)
        save = Save(snapshot, self._folder, self._session.group, self._save_model, self._keep)
        save.begin()
        num_failed, num_without = sum_over_ranks(float(bool(save.failure)), float(not self._copies.hold(snapshot.in_use)))
        if num_failed:
            return save.ended(failed=True)
        if num_without and not wait and self._beside is not False:
            self._take_memory(snapshot)
            if self._beside:
                (num_without,) = sum_over_ranks(float(not self._copies.hold(snapshot.in_use)))
                self._beside = not num_without
                if num_without:
                    self._say("no memory could be had for a copy of the training state: training stands still during a save")
        self._save = save
        if num_without:
            save.run()
            return self.wait()
        save.snapshot = snapshot.copied(self._copies)
        save.in_thread(lambda: save.run(copied=self._copies.wait))
        return self.wait() if wait else None

    def poll(self) -> Saved | None:
        """Called at the end of each step: how the save in flight ended, once that is known."""
        return self._advance(self._save) if self._save is not None else None

    def wait(self) -> Saved | None:
        """Wait for the save in flight. Returns how it ended; None when there was none."""
        begun, saved = time.monotonic(), None
        while self._save is not None:
            self._save.join()
            saved = self._advance(self._save)
        return saved._replace(seconds_waited=time.monotonic() - begun) if saved is not None else None

    def close(self) -> Saved | None:
        """End this process's part and give the memory back. After an error too: the other ranks are not asked.

        Returns:
            How the save in flight ended; None when there was none, or when another rank's part is missing.
        """
        save, self._save = self._save, None
        saved = None
        if save is not None:
            save.join()
            if not save.finishing and self._session.group.is_main and save.others_wrote_theirs():
                save.finish()
            saved = save.ended(bool(save.failure)) if save.finishing else None
        self._copies.release()
        return saved

    def _advance(self, save: Save) -> Saved | None:
        """Bring the save in flight to its second half once all ranks are done with the first."""
        num_running, num_failed = sum_over_ranks(float(save.running), float(bool(save.failure)))
        if num_running:
            return None
        if num_failed or save.finishing:
            self._save = None
            return save.ended(bool(num_failed))
        save.finishing = True
        if self._session.group.is_main:
            save.in_thread(save.finish)
        return None

    def _take_memory(self, snapshot: Snapshot) -> None:
        """Take memory for copies, if the hosts of all ranks have enough."""
        self._copies.release()
        group, needed, free = self._session.group, num_bytes(snapshot.tensors), free_host_memory()
        (total,) = sum_over_ranks(float(needed))
        on_host = max(needed, total * int(os.environ.get("LOCAL_WORLD_SIZE", "1")) / group.world)
        (num_short,) = sum_over_ranks(float(on_host * ROOM > free))
        self._beside = not num_short
        if self._beside:
            self._copies.take(snapshot.in_use)
        else:
            self._say(
                f"the host has {free / 2**30:.1f} GB of memory free, too little for a copy of the training state "
                f"({on_host / 2**30:.1f} GB): training stands still while a checkpoint is written"
            )
