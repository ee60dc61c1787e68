"""Each allocation of a run fails, and each bound on its memory holds: the cells of `benchmarks.out_of_memory`, in forks."""

import json
import os
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.faults.process import LIMIT_SECONDS
from benchmarks.faults.verdict import Verdict
from benchmarks.out_of_memory import ALGOS, LIMITS, Reached, Runs, failing


@dataclass(frozen=True)
class Allocation:
    """One cell: the n-th allocation fails once, or there are so many bytes."""

    algorithm: str
    number: int | None
    limit: float = 0.0

    @property
    def group(self) -> str:
        """For the table."""
        return f"{'memory is bounded' if self.number is None else 'an allocation fails'}, algo={self.algorithm}"

    @property
    def name(self) -> str:
        """What fails."""
        return f"limit {self.limit:.0f}" if self.number is None else f"allocation {self.number}"


class Allocations:
    """The cells of memory that runs out."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._expected: dict[str, dict[str, Any]] = {}

    def cells(self, step: int) -> Iterator[Allocation]:
        """Every `step`-th cell."""
        from tests.simulated_memory import SimulatedMemory

        count = 0
        for algorithm in ALGOS:

            def whole(algorithm: str = algorithm) -> dict[str, Any]:
                runs = self._runs(algorithm)
                for _ in range(2):  # the first one fills what libraries keep
                    memory = SimulatedMemory()
                    reached = runs.once(memory)
                return asdict(reached) | {"num": memory.num_allocations}

            self._expected[algorithm] = found = _forked(whole, self._folder)
            if "num" not in found:
                raise SystemExit(f"the undisturbed run failed: {found}")
            numbers = [Allocation(algorithm, number) for number in range(1, found["num"] + 1)]
            for cell in [*numbers, *(Allocation(algorithm, None, limit) for limit in LIMITS)]:
                count += 1
                if count % step == 0:
                    yield cell

    def run(self, cell: Allocation) -> Verdict:
        """Run one cell."""
        from tests.simulated_memory import SimulatedMemory

        expected = self._expected[cell.algorithm]

        def work() -> dict[str, Any]:
            memory = SimulatedMemory(cell.limit) if cell.number is None else SimulatedMemory(fails=failing(cell.number))
            reached = Reached(expected["losses"], expected["plan"])
            return asdict(self._runs(cell.algorithm).verdict(cell.name, memory, reached))

        found = _forked(work, self._folder)
        return Verdict(found["good"], found["ending"], shown=found["shown"])

    def _runs(self, algorithm: str) -> Runs:
        place = self._folder / algorithm
        for old in place.glob("run-*"):
            shutil.rmtree(old)
        place.mkdir(parents=True, exist_ok=True)
        return Runs(algorithm, place)


def _forked(work: Callable[[], dict[str, Any]], folder: Path) -> dict[str, Any]:
    """What a function returns in a forked process. One that ends without a value, or hangs, ends badly."""
    folder.mkdir(parents=True, exist_ok=True)
    said = folder / "said.json"
    said.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            said.write_text(json.dumps(work()), encoding="utf-8")
        except BaseException as error:
            shown = "".join(traceback.format_exception(error))
            said.write_text(json.dumps({"good": False, "ending": "the process failed", "shown": shown}), encoding="utf-8")
        finally:
            os._exit(0)
    end = time.monotonic() + LIMIT_SECONDS
    while not (done := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < end:
        time.sleep(0.005)
    if not done[0]:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return {"good": False, "ending": "hung", "shown": ""}
    if not said.is_file():
        return {"good": False, "ending": f"ended with status {done[1]}", "shown": ""}
    found: dict[str, Any] = json.loads(said.read_text(encoding="utf-8"))
    return found
