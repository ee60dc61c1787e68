"""Let memory run out at every moment of a run, and see how it ends: on a CPU, whose memory is counted and bounded as a GPU's.

    python -m benchmarks.out_of_memory                        # every allocation fails once, and 24 limits: hours on one core
    python -m benchmarks.out_of_memory --every 20             # every twentieth allocation
    python -m benchmarks.out_of_memory --algos osft --jsonl memory.jsonl
    python -m benchmarks.out_of_memory --processes 2 --every 400    # on the last of two processes, which the others wait for

A run of a tiny model is set up, measures its memory, and trains two steps. It ends well with the losses of the undisturbed run,
or with one line that says what to type. Anything else is bad: a traceback, other losses, a process that waits for ever.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

from hub.config.schema import RunConfig
from hub.errors import HubError

ALGOS = ("lora_sft", "sft", "osft", "dpo")
LIMITS = tuple(10 ** (place / 6) for place in range(30, 44))
"""Bytes: from what no pass fits into to what all do."""

OPTIONS = ("model=tiny", "launch=inline", "model.dtype=float32", "algo.effective_batch_size=4", "algo.max_steps=2",
           "launch.reuse_measurements=false")  # fmt: skip
TOLERANCE = 1e-5
"""Largest relative difference of a loss: other micro-batches round differently."""

SHOWN = ("packed", "max_tokens_per_gpu", "layers_recomputed", "activation_offload")
"""Decisions of plan.json that an ending names if they are others than those of the undisturbed run."""

ROOT = Path(__file__).parents[1]

IN_WORKER = """
import os, sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder

class Finder(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "hub.train.setup.setup" or "RANK" not in os.environ:
            return None
        spec = PathFinder.find_spec(name, path, target)
        real = spec.loader.exec_module
        def exec_module(module):
            real(module)
            set_up = module.set_up
            def with_memory(*args, **named):
                from tests.simulated_memory import SimulatedMemory
                rank, number, count = os.environ["OUT_OF_MEMORY"].split()
                mine = rank == os.environ["RANK"]
                memory = SimulatedMemory(fails=lambda each: mine and each == int(number))
                memory.kept = memory.on()  # else it would be closed at once
                memory.kept.__enter__()
                if mine:
                    import atexit, pathlib
                    from hub.train import loop
                    before = loop.fit
                    def fit(*args, **named):
                        try:
                            return before(*args, **named)
                        finally:
                            pathlib.Path(count).write_text(str(memory.num_allocations))
                    loop.fit = fit
                    if (train := sys.modules.get("hub.tasks.train.train")) is not None:
                        train.fit = fit
                return set_up(*args, **named)
            module.set_up = with_memory
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""
"""What each worker imports as it begins: the last one's memory is counted, and fails where it is asked to."""

SECONDS = 600.0
"""After which a run of several processes counts as one that waits for ever."""


@dataclass(frozen=True)
class Verdict:
    """How a run ended."""

    algo: str
    what: str
    """What failed: `allocation 17`, or `limit 123456`."""

    ending: str
    good: bool
    shown: str = ""
    """The line, or what is bad."""


@dataclass(frozen=True)
class Reached:
    """What a run left."""

    losses: list[float]
    plan: dict[str, Any]


class Runs:
    """Runs of one algorithm, as often as asked.

    Args:
        algo: its name.
        folder: of the runs.
        more: further overrides.
    """

    def __init__(self, algo: str, folder: Path, *more: str) -> None:
        from hub import compose

        self.algo, self._folder, self._number = algo, folder, 0
        data = f"data.path={_pairs(folder)}" if algo == "dpo" else "data=tiny"
        self.words = (f"algo={algo}", data, *OPTIONS, f"output_dir={folder}", *more)
        self._cfg: RunConfig = compose(*self.words)

    def once(self, memory: Any) -> Reached:
        """One run with this memory.

        Raises:
            HubError: it ended with a line.
        """
        from hub.launch import worker
        from hub.launch.launcher import launch
        from hub.train import loop

        self._number += 1
        cfg = replace(self._cfg, run_name=f"run-{self._number}")
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            # Nothing but the model is taken from an earlier run. What takes time and no memory is left out.
            cache = self._folder / "cache"
            for made in cache.glob("*"):
                if made.name != "tiny":
                    shutil.rmtree(made)
            stack.enter_context(mock.patch.dict(os.environ, {"HUB_CACHE": str(cache)}))
            stack.enter_context(mock.patch.object(worker, "_write_card"))
            stack.enter_context(mock.patch.object(loop, "frozen", return_value=contextlib.nullcontext()))
            stack.enter_context(memory.on())
            result = launch(cfg)
            plan = json.loads((result.run_path / "plan.json").read_text(encoding="utf-8"))
            reached = Reached([line["loss"] for line in result.metrics], plan)
        assert reached.losses, "it says no loss"
        shutil.rmtree(result.run_path)
        return reached

    def verdict(self, what: str, memory: Any, expected: Reached) -> Verdict:
        """Run with this memory, and judge how it ends."""
        try:
            reached = self.once(memory)
        except HubError as error:
            return judge_line(self.algo, what, str(error))
        except Exception as error:
            kind = f"traceback: {type(error).__name__}"
            return Verdict(self.algo, what, kind, False, "".join(traceback.format_exception(error)))
        return judge(self.algo, what, reached, expected)


def judge_line(algo: str, what: str, line: str) -> Verdict:
    """Whether a run that ended with an error has said in one line what to type."""
    good = "\n" not in line and "out of memory" in line and "Type " in line
    return Verdict(algo, what, f"one line: {line.partition(' (')[0]}" if good else "another error", good, line)


def judge(algo: str, what: str, reached: Reached, expected: Reached) -> Verdict:
    """Whether a run that ended well has the right losses."""
    pairs = list(zip(reached.losses, expected.losses, strict=False))
    alike = len(reached.losses) == len(expected.losses)
    if not alike or any(not abs(a - b) <= TOLERANCE * abs(b) for a, b in pairs):
        return Verdict(algo, what, "other losses", False, f"{reached.losses}, not {expected.losses}")
    eased = [name for name in SHOWN if reached.plan.get(name) != expected.plan.get(name)]
    return Verdict(
        algo, what, f"the same losses, other {', '.join(eased)}" if eased else "the same losses, nothing eased", True
    )


def failing(number: int) -> Callable[[int], bool]:
    """Let the allocation of this number fail, once."""
    return lambda each: each == number


def cells(runs: Runs, every: int) -> Iterator[Verdict]:
    """Disturb runs of one algorithm: every `every`-th allocation, and each limit."""
    from tests.simulated_memory import SimulatedMemory

    for _ in range(2):  # the first one fills what libraries keep
        memory = SimulatedMemory()
        expected = runs.once(memory)
    for number in range(1, memory.num_allocations + 1, every):
        yield runs.verdict(f"allocation {number}", SimulatedMemory(fails=failing(number)), expected)
    for limit in LIMITS:
        yield runs.verdict(f"limit {limit:.0f}", SimulatedMemory(limit), expected)


def cells_of_processes(runs: Runs, every: int, processes: int, folder: Path) -> Iterator[Verdict]:
    """Disturb runs in real processes: an allocation of the last one fails."""
    (folder / "sitecustomize.py").write_text(IN_WORKER, encoding="utf-8")
    path = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
    count = folder / "count"

    def run(number: int) -> Reached | str:
        words = [word for word in runs.words if not word.startswith("launch")]
        name = f"several-{number}"
        command = [sys.executable, "-m", "hub", *words, f"launch.nproc_per_node={processes}", f"run_name={name}"]
        variables = {"PYTHONPATH": path, "OUT_OF_MEMORY": f"{processes - 1} {number} {count}", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=SECONDS, check=False)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            return done.stderr if "Traceback" in done.stderr else lines[-1]
        path_of_run = folder / name
        metrics = (path_of_run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        losses = [line["loss"] for line in map(json.loads, metrics) if "loss" in line]
        return Reached(losses, json.loads((path_of_run / "plan.json").read_text(encoding="utf-8")))

    expected = run(0)
    if isinstance(expected, str):
        raise RuntimeError(expected)
    for number in range(1, int(count.read_text(encoding="utf-8")) + 1, every):
        what = f"allocation {number} of process {processes - 1}"
        try:
            reached = run(number)
        except subprocess.TimeoutExpired:
            yield Verdict(runs.algo, what, "it waits for ever", False)
            continue
        if isinstance(reached, str):
            yield judge_line(runs.algo, what, reached)
        else:
            yield judge(runs.algo, what, reached, expected)


def _pairs(folder: Path) -> Path:
    """A file of preference pairs."""
    file = folder / "pairs.jsonl"
    rows = (
        {"prompt": f"Say {number}.", "chosen": f"It is {number}, as you said.", "rejected": "No " * (1 + number % 5)}
        for number in range(24)
    )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def main() -> int:
    """Run the cells, print each that does not end well, and a table. Returns 1 if there is one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algos", nargs="+", choices=ALGOS, default=ALGOS, help="algorithms")
    parser.add_argument("--every", type=int, default=1, help="let every N-th allocation fail")
    parser.add_argument("--processes", type=int, default=1, help="processes of a run; memory runs out in the last one")
    parser.add_argument("--jsonl", type=Path, help="write a line per cell to this file")
    args = parser.parse_args()
    endings: Counter[tuple[str, str]] = Counter()
    started, bad = time.monotonic(), 0
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hub-memory-")))
        lines = stack.enter_context(args.jsonl.open("a", encoding="utf-8")) if args.jsonl else None
        for algo in args.algos:
            place = folder / algo
            place.mkdir()
            runs, several = Runs(algo, place), args.processes > 1
            found = cells_of_processes(runs, args.every, args.processes, place) if several else cells(runs, args.every)
            for verdict in found:
                endings[algo, ("" if verdict.good else "BAD: ") + verdict.ending] += 1
                bad += not verdict.good
                if lines:
                    lines.write(json.dumps(asdict(verdict)) + "\n")
                    lines.flush()
                if not verdict.good:
                    print(f"BAD {algo}, {verdict.what}: {verdict.ending}\n{verdict.shown}\n", flush=True)
    print("| algorithm | ending | runs |\n| --- | --- | --- |")
    for (algo, ending), number in sorted(endings.items(), key=lambda item: (item[0][0], -item[1])):
        print(f"| {algo} | {ending} | {number} |")
    print(f"\n{endings.total():,} runs in {time.monotonic() - started:,.0f} s, {bad:,} did not end well")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
