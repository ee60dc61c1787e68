"""Disturb runs in thousands of ways, and see whether anything is lost.

python -m benchmarks.faults                          # all cells, about 27,000: many hours on two cores
python -m benchmarks.faults --every 40               # every fortieth
python -m benchmarks.faults --only stops --jsonl faults.jsonl
python -m benchmarks.faults --short                  # some of each kind, a minute or so: `make faults` in CI

A cell is good if the run says what happened without a traceback, leaves no process behind, and ends, at once or when it goes
on, with the weights and metrics of the undisturbed run, bit for bit.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.faults.allocations import Allocations
from benchmarks.faults.process import Forks, preloaded
from benchmarks.faults.stops import Stops
from benchmarks.faults.surroundings import Surroundings
from benchmarks.faults.writes import Writes
from tests.warm.start import warm_python

GROUPS = ("writes", "stops", "surroundings", "allocations")
SHORT = {"writes": 809, "stops": 211, "surroundings": 19, "allocations": 4001}
"""Kind -> N: the short form has every N-th cell. Primes, so that errors, calls, signals and moments vary from cell to cell."""


def main() -> int:
    """Run the cells, print each that does not end well, and a table. Returns 1 if there is one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS, help="kinds of cells")
    parser.add_argument("--every", type=int, default=1, help="run every N-th cell")
    parser.add_argument("--short", action="store_true", help=f"some of each kind: every {SHORT} cell")
    parser.add_argument("--part", default="1/1", help="I/N: the I-th of N parts, for several of these commands at once")
    parser.add_argument("--jsonl", type=Path, help="write a line per cell to this file")
    args = parser.parse_args()
    every = SHORT if args.short else dict.fromkeys(GROUPS, args.every)
    if "writes" in args.only and not preloaded():
        print("no C compiler: writes can't be made to fail, their cells are left out", file=sys.stderr)
        args.only = [name for name in args.only if name != "writes"]
    part, parts = (int(word) for word in args.part.split("/"))
    endings: dict[str, Counter[str]] = defaultdict(Counter)
    bad = lost = most = undisturbed = 0
    started = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hub-faults-")))
        lines = stack.enter_context(args.jsonl.open("a", encoding="utf-8")) if args.jsonl else None
        for number, (runner, cell) in enumerate(_cells(args.only, every, folder, stack)):
            if number % parts != part - 1:
                continue
            verdict = runner.run(cell)
            if not verdict.disturbed and verdict.good:
                undisturbed += 1
                continue
            endings[cell.group][("" if verdict.good else "BAD: ") + verdict.ending] += 1
            bad, lost, most = bad + (not verdict.good), lost + verdict.lost, max(most, verdict.lost)
            if lines:
                lines.write(json.dumps({"group": cell.group, "name": cell.name, **vars(verdict)}) + "\n")
                lines.flush()
            if not verdict.good:
                print(f"BAD {cell.group}, {cell.name}: {verdict.ending}\n{verdict.shown}\n", flush=True)
    print("| disturbed by | cells | endings |\n| --- | --- | --- |")
    for group, counts in endings.items():
        print(f"| {group} | {counts.total()} | {', '.join(f'{ending} {n}' for ending, n in counts.most_common())} |")
    total = sum(counts.total() for counts in endings.values())
    print(
        f"\n{total:,} cells in {time.monotonic() - started:,.0f} s, {bad:,} did not end well. "
        f"Done twice: {lost:,} steps, at most {most} in a cell. Not counted: {undisturbed:,}, whose fault did not come"
    )
    return 1 if bad else 0


def _cells(only: list[str], every: dict[str, int], folder: Path, stack: ExitStack) -> Iterator[tuple[Any, Any]]:
    """All cells, each with what runs it."""
    if "stops" in only:
        warm = folder / "warm"
        warm.mkdir()
        stops = Stops(stack.enter_context(warm_python(warm)), folder / "stops")
        yield from ((stops, cell) for cell in stops.cells(every["stops"]))
    forks = Forks() if set(only) - {"stops"} else None
    if forks is not None and "surroundings" in only:
        around = Surroundings(forks, folder / "surroundings")
        yield from ((around, change) for change in around.cells(every["surroundings"]))
    if forks is not None and "writes" in only:
        writes = Writes(forks, folder / "writes")
        yield from ((writes, write) for write in writes.cells(every["writes"]))
    if "allocations" in only:
        allocations = Allocations(folder / "allocations")
        yield from ((allocations, cell) for cell in allocations.cells(every["allocations"]))


if __name__ == "__main__":
    sys.exit(main())
