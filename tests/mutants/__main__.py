"""Finds mistakes that no test would notice: makes small ones, one at a time, and runs the tests that belong to the file.

    PYTHONPATH=tests python -m mutants hub/train/schedule.py     the mutants of a file
    PYTHONPATH=tests python -m mutants                           of all files of `belongs.ALL`, the smallest first: hours
    PYTHONPATH=tests python -m mutants --base main --seconds 300 of the lines that differ from a commit, within some time
    PYTHONPATH=tests python -m mutants --part 2/3 FILE           the second of three parts, for several of these at once

`make mutants` runs these. Nothing in the working tree is changed. The exit code is 1 if a mutant survives without a reason in
`reasons.toml`.
"""

import argparse
import gc
import importlib
import os
import subprocess
import sys
import time
import tomllib
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

from mutants.belongs import ALL, ROOT, all_files
from mutants.mutate import Module, Mutant
from mutants.run import Tried, run_file

IMPORTED = ("torch", "transformers", "transformers.models.llama.modeling_llama", "transformers.trainer_pt_utils", "accelerate",
            "datasets", "peft", "safetensors.torch", "hydra.core.global_hydra", "torch.distributed.fsdp", "pytest")  # fmt: skip
"""What every test would import. Nothing of the hub: each file has a process of its own for that."""

REASONS = Path(__file__).with_name("reasons.toml")


def reasons_of(file: str) -> dict[str, str]:
    """Line of the file, without indentation -> why its mutants may survive."""
    found: dict[str, str] = tomllib.loads(REASONS.read_text(encoding="utf-8")).get(file, {})
    return found


def changed_lines(base: str) -> dict[str, set[int]]:
    """The lines of each file that differ from a commit."""
    command = ["git", "diff", "--unified=0", "--no-color", base, "--", *ALL]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"--base {base}: {done.stderr.strip()}")
    lines: dict[str, set[int]] = {}
    for line in done.stdout.splitlines():
        if line.startswith("+++ "):
            file = line[4:].removeprefix("b/")
        elif line.startswith("@@"):
            start, _, count = line.split("+")[1].split(" ")[0].partition(",")
            lines.setdefault(file, set()).update(range(int(start), int(start) + int(count or 1)))
    return {file: found for file, found in lines.items() if file.endswith(".py") and "/tests/" not in file and found}


def examine(file: str, lines: set[int] | None, deadline: float, part: tuple[int, int] = (1, 1)) -> Counter[str]:
    """Try the mutants of a file, and print those that survive.

    Args:
        file: its path in the project.
        lines: those whose mutants are tried. None: all.
        deadline: when to end, by `time.monotonic`.
        part: (i, n): of these, every n-th from the i-th on.

    Returns:
        Counts: `made`, `killed`, `left` with a reason, `survived` without one.
    """
    path = ROOT / file
    module = Module(path.read_text(encoding="utf-8"), str(path))
    text, reasons = module.source.splitlines(), reasons_of(file)
    chosen = [mutant for mutant in module.mutants if lines is None or lines & {mutant.line, mutant.statement}]
    chosen = chosen[part[0] - 1 :: part[1]]
    counts: Counter[str] = Counter(made=len(chosen))
    if not chosen or time.monotonic() > deadline:  # the tests of a file are run once without a mutant, a minute or so
        return counts

    def reason(mutant: Mutant) -> str | None:
        return reasons.get(text[mutant.line - 1].strip()) or reasons.get(text[mutant.statement - 1].strip())

    def take(tried: Tried) -> None:
        counts["tried"] += 1
        if not tried.survived:
            counts["killed"] += 1
        elif reason(tried.mutant):
            counts["left"] += 1
        else:
            counts["survived"] += 1
            print(f"{file}:{tried.mutant.line}: {tried.mutant} ({tried.by})", flush=True)

    for failed in run_file(file, chosen, module, deadline, take):
        print(f"{failed} fails without a mutant, and is left out", flush=True)
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m mutants", description=__doc__.split("\n", 1)[0])
    parser.add_argument("files", nargs="*", help="paths in the project")
    parser.add_argument("--base", help="a commit: only lines that differ from it")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end after this time")
    parser.add_argument("--part", default="1/1", help="I/N: the I-th of N parts of each file's mutants")
    asked = parser.parse_args()
    changed = changed_lines(asked.base) if asked.base else {}
    files = [Path(file).resolve().relative_to(ROOT).as_posix() for file in asked.files] or (
        sorted(changed, key=lambda file: len(changed[file])) if asked.base else all_files()
    )
    os.chdir(ROOT)
    deadline = time.monotonic() + asked.seconds
    number, parts = (int(word) for word in asked.part.split("/"))
    if not files:
        print(f"no line of {', '.join(ALL)} differs from {asked.base}")
        return 0
    for name in IMPORTED:
        if find_spec(name.partition(".")[0]):
            importlib.import_module(name)
    gc.freeze()
    total: Counter[str] = Counter()
    print(f"{'file':60} {'made':>6} {'killed':>7} {'left':>6} {'survived':>9} {'not tried':>10}", flush=True)
    for file in files:
        started = time.monotonic()
        counts = examine(file, changed.get(file), deadline, (number, parts))
        total += counts
        print(f"{_row(file, counts)}   {time.monotonic() - started:.0f} s", flush=True)
    print(_row("total", total))
    return int(total["survived"] > 0)


def _row(name: str, counts: Counter[str]) -> str:
    rest = counts["made"] - counts["tried"]
    return f"{name:60} {counts['made']:6} {counts['killed']:7} {counts['left']:6} {counts['survived']:9} {rest:10}"


if __name__ == "__main__":
    sys.exit(main())
