"""Each writing system call of a run fails once, for ever, or for a while: as on a disk that is full or broken."""

import errno
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.faults.process import Ended, Fault, Forks, stopped_at_step
from benchmarks.faults.verdict import Reference, Verdict, judge

OPTIONS = ("model=tiny", "data=tiny", "model.dtype=float32", "algo.max_steps=6", "algo.save_every_steps=2",
           "algo.eval_every_steps=3", "algo.effective_batch_size=8", "algo.deterministic=true", "launch=inline",
           "launch.wait_for_disk_minutes=0.02")  # fmt: skip
ALGORITHMS = {"lora_sft": ("algo.lora_dropout=0.1",), "sft": (), "osft": ()}
RESUMED = "lora_sft, resumed"
"""A run that was stopped at its third step, and whose writes fail when it goes on."""

ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO}
COUNTS = {"once": 1, "for a while": 12, "for ever": -1}


@dataclass(frozen=True)
class Write:
    """One cell: the n-th writing call of a run fails."""

    algorithm: str
    error: str
    lasting: str
    number: int
    call: str

    @property
    def group(self) -> str:
        """For the table."""
        return f"{self.error} {self.lasting}, algo={self.algorithm}"

    @property
    def name(self) -> str:
        """What fails."""
        return f"call {self.number}, {self.call}"


class Writes:
    """The cells of failing writes."""

    def __init__(self, forks: Forks, folder: Path) -> None:
        self._forks, self._folder = forks, folder
        self._references: dict[str, Reference] = {}

    def cells(self, step: int) -> Iterator[Write]:
        """Every `step`-th cell."""
        number = 0
        for algorithm in (*ALGORITHMS, RESUMED):
            whole = self._new("whole")
            ended = self._forks.run(self._words(algorithm), whole)
            if ended.code != 0:
                raise SystemExit(f"the undisturbed run failed: {ended.err}")
            self._references[algorithm] = Reference.of(whole / "runs" / "latest")
            if algorithm == RESUMED:
                self._stop()
                ended = self._forks.run(self._begun(algorithm), self._folder / "cell")
            for error in ERRORS:
                for lasting in COUNTS:
                    for index, call in enumerate(ended.calls):
                        number += 1
                        if number % step == 0:
                            yield Write(algorithm, error, lasting, index, call)

    def run(self, cell: Write) -> Verdict:
        """Run one cell."""
        folder = self._new("cell")
        if cell.algorithm == RESUMED:
            shutil.copytree(self._folder / "stopped", folder, symlinks=True, dirs_exist_ok=True)
        fault = Fault(ERRORS[cell.error], cell.number, COUNTS[cell.lasting])
        ended = self._forks.run(self._begun(cell.algorithm), folder, fault)
        runs = sorted(path for path in (folder / "runs").glob("*") if path.is_dir() and not path.is_symlink())

        def go_on(run: Path | None) -> Ended:
            words = self._words(cell.algorithm)
            begun = run is not None and any((run / "checkpoints").glob("step-*"))
            return self._forks.run([*words, f"resume={run}"] if begun else words, folder)

        verdict = judge(ended, runs[-1] if runs else None, self._references[cell.algorithm], go_on, (1, 2))
        return replace(verdict, disturbed=len(ended.calls) > cell.number)

    def _words(self, algorithm: str) -> list[str]:
        name = algorithm.partition(",")[0]
        return ["train", f"algo={name}", *OPTIONS, *ALGORITHMS[name]]

    def _begun(self, algorithm: str) -> list[str]:
        """The words whose writes fail."""
        return [*self._words(algorithm), *(["resume=latest"] if algorithm == RESUMED else [])]

    def _stop(self) -> None:
        """Keep a run that was stopped. It is made where the cells are, as its files have its place."""
        folder = self._new("cell")
        self._forks.run(self._words(RESUMED), folder, prepare=stopped_at_step(3))
        shutil.rmtree(self._folder / "stopped", ignore_errors=True)
        shutil.copytree(folder, self._folder / "stopped", symlinks=True)

    def _new(self, name: str) -> Path:
        path = self._folder / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path
