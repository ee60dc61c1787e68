"""The checkpoints of a run as the training loop sees them: when one may be begun, how it ended, and the last one of all."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hub.parallel.reparametrization import Reparametrization
from hub.run import Run
from hub.train.checkpoints.checkpoint import checkpoint_name
from hub.train.checkpoints.save import Saved
from hub.train.checkpoints.writer import CheckpointWriter
from hub.train.last_save import LastSave


class Checkpoints:
    """Writes checkpoints beside training. A failure is logged, and training goes on. All ranks make the same calls.

    Args:
        run: the run folder.
        writer: writes them, one at a time.
        last_save: writes what a run ends with.
        reparametrization: gives the exact weights.
        state: what a run needs besides weights and optimizer to go on, with the score of the newest evaluation.
        say: logs a line.
        observe: tells observers of the run.
    """

    def __init__(
        self,
        run: Run,
        writer: CheckpointWriter,
        last_save: LastSave,
        reparametrization: Reparametrization,
        state: Callable[[float | None], Mapping[str, Any]],
        say: Callable[[str], None],
        observe: Callable[..., None],
    ) -> None:
        self._run, self._writer, self._last_save, self._reparametrization = run, writer, last_save, reparametrization
        self._state, self._say, self._observe = state, say, observe
        self._why_not_saved = ""
        self.newest: int | None = None
        """Step of the newest checkpoint that this process wrote."""
        self.resumed_from: Path | None = None
        """The checkpoint that a resumed run goes on from."""

    def save(self, step: int, score: float | None = None, wait: bool = False) -> Path | None:
        """Start writing a checkpoint, once the previous one is written.

        Args:
            step: that is done.
            score: of the newest evaluation.
            wait: until it is written.

        Returns:
            Its folder, if `wait` is set and it could be written.
        """
        self.wait()
        if self.resumed_from is not None and self.resumed_from.name == checkpoint_name(step):
            return self.resumed_from  # it is this state
        state = dict(self._state(score))
        with self._reparametrization.exact():
            saved = self._writer.save(step, state, wait)
        self._report(saved, goes_on=not wait)
        return saved.path if saved else None

    def save_last(self, step: int, score: float | None = None) -> tuple[Path | None, Path | None]:
        """Write the checkpoint of a run that ends before its last step. Returns it and its model. None: it can't be written."""
        return self._last_save.checkpoint(lambda: (self.save(step, score, wait=True), self._why_not_saved), step)

    def prepare(self) -> None:
        """Allocate the memory for copies before the first save."""
        self._writer.prepare()

    def poll(self) -> None:
        """Report a save that has finished."""
        self._report(self._writer.poll())

    def wait(self) -> None:
        """Wait for the save in progress."""
        self._report(self._writer.wait())

    def close(self) -> None:
        """Wait for the save in progress. There is none after it."""
        self._report(self._writer.close())

    def _report(self, saved: Saved | None, goes_on: bool = True) -> None:
        """Log how a finished save ended. None: no save has finished."""
        if saved is None:
            return
        if saved.path is None and not goes_on:
            self._why_not_saved = saved.failure
        elif saved.path is None:
            self._say(f"no checkpoint could be written after step {saved.step}: {saved.failure}. Training continues")
        else:
            self.newest = saved.step
            self._say(f"checkpoint {saved.path}")
            self._observe("hub_checkpoint", run=self._run, step=saved.step, path=saved.path)
