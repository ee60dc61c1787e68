"""The last save of a run, on a disk that may be full: what was learnt is in memory, and stays there until it is written.

The run says how much to free, waits and tries again. Then the smallest thing that holds what was learnt, the model, is saved
wherever there is room.
"""

import shlex
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from hub.config.schema import LaunchConfig
from hub.errors import LaunchError
from hub.parallel.group import max_over_ranks
from hub.run import Run
from hub.system.signals import stop_request
from hub.system.small_files import may_pass
from hub.system.space import free_space, size_text

Say = Callable[[str], None]

SECONDS_BETWEEN_TRIES = 5.0
SECONDS_BETWEEN_BLIND_TRIES = 60.0
"""Between tries while the disk seems to have too little room: sizes are estimates, and a quota can't be seen."""
SECONDS_BETWEEN_LOOKS = 60.0


class LastSave:
    """Saves the result of a run. All ranks make the same calls, and rank 0 writes."""

    def __init__(
        self, run: Run, launch: LaunchConfig, say: Say, sizes: tuple[int, int], writer: Callable[[], Callable[[Path], None]]
    ) -> None:
        """Args:
        run: the run folder.
        launch: `wait_for_disk_minutes` and `spare_dir`.
        say: logs a line.
        sizes: bytes that the saved model takes, and a checkpoint.
        writer: takes the weights as they are, on all ranks, and gives a function that writes them into a folder on rank 0.
        """
        self._run, self._launch, self._say, self._writer = run, launch, say, writer
        self._model_bytes, self._checkpoint_bytes = sizes
        self._looked, self._is_short = time.monotonic(), False

    def _patiently(self, attempt: Callable[[], str], what: str, folder: Path, needed: int) -> str:
        """Try until it works, for up to `launch.wait_for_disk_minutes`, or until a signal asks to stop.

        Args:
            attempt: writes. Returns why the disk refused, or nothing. Each rank may return something else.
            what: what is written, as the subject of a sentence.
            folder: where.
            needed: bytes that it takes.

        Returns:
            Why it could not be written. Empty: it is. Empty or not on all ranks alike.
        """
        begun, stopped, said = time.monotonic(), stop_request.signal_number, False
        while True:
            reason, tried = attempt(), time.monotonic()
            passes, failed = max_over_ranks(float(may_pass(OSError(reason)))), max_over_ranks(float(bool(reason)))
            if not failed:
                return ""
            reason = reason or "another process could not write its part"
            if not passes:
                return reason
            if not said:
                self._ask_for_room(what, reason, folder, needed)
                said = True
            while True:
                over = time.monotonic() - begun > self._launch.wait_for_disk_minutes * 60
                if max_over_ranks(float(over or stop_request.signal_number != stopped)):
                    return reason
                time.sleep(min(SECONDS_BETWEEN_TRIES, self._launch.wait_for_disk_minutes * 60))
                waited = time.monotonic() - tried > SECONDS_BETWEEN_BLIND_TRIES
                if max_over_ranks(float(self._run.is_main and (waited or free_space(folder) >= needed))):
                    break

    def model(self, patient: bool = True) -> Path:
        """Save the model: in the run folder, or else below `launch.spare_dir`. A folder of that name is whole.

        Args:
            patient: whether to wait for room first.

        Returns:
            Where it is.

        Raises:
            LaunchError: it could not be saved anywhere.
        """
        here, write = self._run.model_path, self._writer()

        def attempt(place: Path) -> str:
            return _written(write, place) if self._run.is_main else ""

        if patient:
            reason = self._patiently(lambda: attempt(here), "the model", here.parent, self._model_bytes)
        else:
            reason = _agreed(attempt(here))
        if not reason:
            return here
        lost = f"the model ({size_text(self._model_bytes)}) could not be saved in {here.parent}: {reason}"
        if (spare := self._run.spare(self._launch.spare_dir)) is None:
            raise LaunchError(f"{lost}. launch.spare_dir=FOLDER on another disk would have taken it{self._go_on()}")
        if also := _agreed(attempt(spare / "model")):
            raise LaunchError(f"{lost}, nor in {spare}: {also}{self._go_on()}")
        self._say(f"the model is in {spare / 'model'}: in {here.parent} it could not be saved ({reason})")
        return spare / "model"

    def checkpoint(self, save: Callable[[], tuple[Path | None, str]], step: int) -> tuple[Path | None, Path | None]:
        """Save the checkpoint of a run that ends before its last step. If the disk stays too full, save the model alone.

        Args:
            save: writes the checkpoint. Returns its folder, or why there is none.
            step: the last step.

        Returns:
            The checkpoint and the model. None: it could not be written.
        """
        saved: list[Path | None] = []

        def attempt() -> str:
            path, why_not = save()
            saved.append(path)
            return "" if path is not None else why_not

        reason = self._patiently(attempt, "the checkpoint", self._run.checkpoints_path, self._checkpoint_bytes)
        if not reason and (checkpoint := saved[-1]) is not None:
            return checkpoint, checkpoint / "model"
        self._say(f"no checkpoint could be written after step {step}: {reason}")
        try:
            return None, self.model(patient=False)
        except LaunchError as error:
            self._say(str(error))
            return None, None

    def look(self) -> None:
        """Log if the disk has no longer the room that the end of the run needs, and if it has it again. Looks once a minute."""
        if not self._run.is_main or time.monotonic() - self._looked < SECONDS_BETWEEN_LOOKS:
            return
        folder, needed = self._run.path, self._model_bytes
        self._looked, free = time.monotonic(), free_space(folder)
        if (is_short := free < needed) == self._is_short:
            return
        self._is_short = is_short
        if is_short:
            self._say(
                f"{folder}: {size_text(free)} are free, and the end of the run needs {size_text(needed)}. Free "
                f"{size_text(needed - free)}. Training continues"
            )
        else:
            self._say(f"{folder} has room for the end of the run again")

    def _go_on(self) -> str:
        """What to type if there is a checkpoint."""
        if not any(self._run.checkpoints_path.glob("step-*/manifest.json")):
            return ""
        command = shlex.quote(f"resume={self._run.path}")
        return f". To repeat the steps since the last checkpoint, make room and type python -m hub {command}"

    def _ask_for_room(self, what: str, reason: str, folder: Path, needed: int) -> None:
        minutes = self._launch.wait_for_disk_minutes
        free = free_space(folder)
        more = f": free {size_text(needed - free)} more" if free < needed else ""
        self._say(
            f"{what} can't be written into {folder}: {reason}. It needs about {size_text(needed)}, {size_text(free)} are "
            f"free{more}. The run waits for up to launch.wait_for_disk_minutes={minutes:g}, and tries again"
        )


def _written(write: Callable[[Path], None], folder: Path) -> str:
    """Write a folder aside, and give it its name when it is whole. Returns why the disk refused. Other errors are raised."""
    aside = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(parents=True, exist_ok=True)
        write(aside)
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    except Exception as error:  # safetensors has an error of its own for a full disk
        shutil.rmtree(aside, ignore_errors=True)
        if not may_pass(error):
            raise
        return getattr(error, "strerror", None) or str(error)
    return ""


def _agreed(reason: str) -> str:
    """Rank 0's reason, or another one, on all ranks alike."""
    failed = max_over_ranks(float(bool(reason)))
    return reason or ("the disk refused it" if failed else "")
