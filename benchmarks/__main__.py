"""Compare the hub with other trainers on the same workload: tokens/s, ratio, memory, fraction of the GPU's peak, first step.

python -m benchmarks lora_8b qlora_8b                          # the hub and each installed peer
python -m benchmarks full_1b --only ours trl --steps 6 --json full_1b.json --markdown full_1b.md
python -m benchmarks profile lora_8b                           # where the hub's step spends its time
python -m benchmarks tiny --only ours trl --steps 4            # a quick check that runs anywhere
python -m benchmarks families --out families.jsonl             # every model preset at its real size: see families.py

Each contender runs in a separate process on the same model and the same rows. A variable names the environment of a peer that
is installed elsewhere: HUB_PEER_UNSLOTH="PYTHONPATH=/folder LD_LIBRARY_PATH=/other python3", see benchmarks/README.md.
"""

import argparse
import json
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from datetime import date
from pathlib import Path
from typing import Any, Literal

from benchmarks import step_profile, table
from benchmarks.context import Fit, search
from benchmarks.peers import Peer, Task, peers
from benchmarks.runner import Row, Start, run
from benchmarks.shapes import SHAPES, made_for
from benchmarks.workloads import WORKLOADS, Lengths, Workload, write_rows
from hub import compose
from hub.system.gpus import num_visible_gpus

SEARCH_STEPS = 2
"""Steps of each attempt at a long row. The second one has the optimizer's state."""

TINY = Lengths(longest=256, mean=60)
"""Replaces a workload's own lengths with `--shape tiny`."""


@dataclass(frozen=True)
class Asked:
    """The arguments of the command line."""

    steps: int
    batch: int | None
    shape: str | None
    time_limit: float
    folder: Path


def workload_of(name: str, asked: Asked) -> Workload:
    """Return a workload, with the shape and batch size of the command line if set."""
    workload = WORKLOADS[name]
    if asked.shape == "tiny" and workload.shape != "tiny":
        lengths = replace(TINY, mean=TINY.mean if workload.packed else None)
        workload = replace(
            workload, lengths=lengths, ours={k: v for k, v in workload.ours.items() if k != "max_tokens_per_gpu"}
        )
    return replace(workload, shape=asked.shape or workload.shape, batch=asked.batch or workload.batch)


def num_processes(workload: Workload) -> int:
    """Return 1, or for workloads on several GPUs their number."""
    return max(1, num_visible_gpus()) if workload.gpus > 1 else 1


def reason_to_skip(workload: Workload) -> str | None:
    """Return why a workload can't run here. None: it can."""
    gpus = num_visible_gpus()
    if workload.gpus > max(1, gpus):
        return f"it needs {workload.gpus} GPUs, and there are {gpus}"
    cfg = compose(f"algo={workload.algo}")
    known = {item.name for part in (cfg.algo, cfg.launch) for item in fields(part)}
    if unknown := sorted(set(workload.ours) - known):
        return f"the hub has no option {', '.join(unknown)}"
    return None


def make_task(contender: str, workload: Workload, steps: int, folder: Path) -> Task:
    """Describe the workload for one contender. The rows are written once for all contenders."""
    rows, about = folder / "rows.jsonl", folder / "rows.json"
    if not about.is_file():
        about.write_text(json.dumps(write_rows(rows, workload, steps)), encoding="utf-8")
    return Task(
        contender=contender,
        kind=workload.kind,
        model=str(made_for(workload.shape, workload.lengths.longest)),
        rows=str(rows),
        steps=steps,
        batch=workload.batch,
        longest=workload.lengths.longest,
        mean=json.loads(about.read_text(encoding="utf-8"))["tokens"],
        packed=workload.packed,
        micro_rows=workload.micro_rows,
        gpus=num_processes(workload),
        least_memory=workload.least_memory,
        ours=workload.ours,
        pairs=workload.pairs,
    )


def attempt(
    contender: str, peer: Peer, name: str, workload: Workload, steps: int, asked: Asked, limit: float, **variables: str
) -> Row:
    """Run one contender in a separate folder."""
    shared = asked.folder / f"{name}-{workload.lengths.longest}"
    own = shared / contender
    own.mkdir(parents=True)
    task = make_task(contender, workload, steps, shared)
    try:
        return run(peer, name, task, own, limit, variables)
    finally:
        if not variables:
            shutil.rmtree(own, ignore_errors=True)


def longest(contender: str, peer: Peer, name: str, workload: Workload, asked: Asked) -> Row:
    """Search for the longest row that fits, within the time limit."""
    ends = time.monotonic() + asked.time_limit
    best: list[Row] = []
    capacity: list[float] = []
    failures: list[str] = []

    def try_one(tokens: int) -> Fit | Literal[False] | None:
        left = ends - time.monotonic()
        if left <= 0:
            failures.append("time limit reached")
            return None
        smaller = replace(workload, lengths=Lengths(longest=tokens), ours=workload.ours | {"max_tokens_per_gpu": tokens})
        row = attempt(contender, peer, name, smaller, SEARCH_STEPS, asked, left)
        outcome = row.failure or f"{row.tokens_per_second:,.0f} tokens/s, {row.peak_gib} GiB"
        print(f"  {peer.title}: {tokens:,} tokens: {outcome}", flush=True)
        if row.out_of_memory:
            return False
        if row.tokens_per_second is None or row.peak_gib is None:
            failures.append(f"{tokens:,}: {row.failure or 'no GPU'}")
            return None
        capacity.append(row.about["gpu"]["total_bytes"])
        best.append(replace(row, longest=tokens))
        return Fit(tokens, row.peak_gib * 2**30)

    result = search(try_one, workload.lengths.longest, lambda: capacity[-1] if capacity else None)
    row = next(
        (row for row in best if row.longest == result.longest), Row(workload=name, contender=contender, title=peer.title)
    )
    words = [f"{result.too_long:,} is too long"] if result.too_long else []
    if failures and result.extrapolated and not result.too_long:
        words.append(f"its memory would be full at about {result.extrapolated:,}")
    return replace(row, failure="; ".join([*words, *failures]))


def rows_of(name: str, asked: Asked, contenders: dict[str, Peer]) -> Iterator[Row]:
    """Run a workload with each contender, and yield the rows of the table."""
    workload = workload_of(name, asked)
    if reason := reason_to_skip(workload):
        print(f"{name} is skipped: {reason}", flush=True)
        return
    made_for(workload.shape, workload.lengths.longest)  # beforehand, so that it does not count as time of the first contender
    for contender, peer in contenders.items():
        if contender != "ours" and workload.peers is not None and contender not in workload.peers:
            continue
        if refusal := peer.refuses(workload.kind, num_processes(workload)):
            print(f"{name} without {peer.title}: {refusal}", flush=True)
        elif workload.search:
            yield longest(contender, peer, name, workload, asked)
        else:
            yield attempt(contender, peer, name, workload, asked.steps, asked, asked.time_limit)


def compare(names: list[str], asked: Asked, only: list[str] | None, json_file: Path | None, markdown_file: Path | None) -> int:
    """Print each row as soon as it is measured, then the table. The files are rewritten after each row, so nothing is lost."""
    contenders = installed(only)
    gpu, gpus = table.gpu_name(), num_visible_gpus()
    command = " ".join(["python -m benchmarks", *map(shlex.quote, sys.argv[1:])])
    machine = {"gpu": gpu, "gpus": gpus, "cores": os.cpu_count(), "date": date.today().isoformat(), "command": command}
    rows: list[Row] = []

    def used(row: Row) -> tuple[str, str | None, int]:
        workload = workload_of(row.workload, asked)
        return workload.shape, gpu, num_processes(workload)

    print(table.line(table.HEAD))
    print(table.line(["---"] * len(table.HEAD)), flush=True)
    for name in names:
        for row in rows_of(name, asked, contenders):
            rows.append(row)
            print(table.line(table.cells(row, *used(row))), flush=True)
            write(rows, machine, used, json_file, markdown_file)
    print(f"\n{write(rows, machine, used, json_file, markdown_file)}")
    return 0 if any(row.tokens_per_second for row in rows) else 1


def write(rows: list[Row], machine: dict[str, Any], used: Any, json_file: Path | None, markdown_file: Path | None) -> str:
    """Return the table so far, and write it to the files of the command line."""
    versions = {row.title: row.about["versions"] for row in rows if row.about.get("versions")}
    text = table.markdown([table.cells(row, *used(row), rows) for row in rows], machine, versions)
    if markdown_file:
        markdown_file.write_text(text, encoding="utf-8")
    if json_file:
        ratios = [{"ratio": table.ratio(row, rows), "share_of_peak": table.share_of_peak(row, *used(row))} for row in rows]
        values = [row.as_json() | ratio for row, ratio in zip(rows, ratios, strict=True)]
        json_file.write_text(json.dumps({"machine": machine, "rows": values}, indent=2) + "\n", encoding="utf-8")
    return text


def installed(only: list[str] | None) -> dict[str, Peer]:
    """Return the contenders that `--only` names and that are installed. The missing ones are printed."""
    contenders, missing = {}, []
    for contender, peer in peers().items():
        if only and contender not in only:
            continue
        if Start.of(peer.environment).has(peer.needs):
            contenders[contender] = peer
        else:
            missing.append(peer.title)
    if missing:
        print(f"not installed: {', '.join(missing)}\n", flush=True)
    return contenders


def profile(names: list[str], asked: Asked) -> int:
    """Profile the hub's step: two of the last steps of a run, under torch's profiler."""
    for name in names:
        workload = workload_of(name, asked)
        if reason := reason_to_skip(workload):
            print(f"{name} is skipped: {reason}")
            return 1
        last = max(4, asked.steps)
        peer = peers()["ours"]
        row = attempt("ours", peer, name, workload, last, asked, asked.time_limit, HUB_BENCHMARK_PROFILE=f"{last - 2}:{last}")
        folder = asked.folder / f"{name}-{workload.lengths.longest}"
        if not (folder / "ours" / "profile.json").is_file():
            print(f"{name}: {row.failure or 'no profile was written'}")
            return 1
        print(f"\n## {name}\n\n{row.about.get('how', '')}\n")
        print(step_profile.report(folder / "ours", workload, folder / "rows.json", table.gpu_name(), num_processes(workload)))
    return 0


def main() -> int:
    if sys.argv[1:2] == ["families"]:
        from benchmarks import families

        return families.main(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="+", metavar="WORKLOAD", help=f"[profile] and any of {', '.join(WORKLOADS)}")
    parser.add_argument("--only", nargs="+", choices=peers(), help="the contenders; default: all that are installed")
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps, of which the later half is measured")
    parser.add_argument("--batch", type=int, help="samples per step instead of the workload's own number")
    parser.add_argument("--shape", choices=SHAPES, help="shape of the model instead of the workload's own")
    parser.add_argument("--time-limit", type=float, default=240.0, help="seconds for each row of the table")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--markdown", type=Path, help="file for the table")
    asked = parser.parse_args()
    profiling = asked.workloads[0] == "profile"
    names = asked.workloads[1:] if profiling else asked.workloads
    if unknown := [name for name in names if name not in WORKLOADS]:
        parser.error(f"{unknown[0]} is not allowed. Allowed: {', '.join(WORKLOADS)}")
    if not names:
        parser.error(f"profile needs a workload. Allowed: {', '.join(WORKLOADS)}")
    Path("runs").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir="runs", prefix="benchmark-", ignore_cleanup_errors=True) as name:
        chosen = Asked(asked.steps, asked.batch, asked.shape, asked.time_limit, Path(name).absolute())
        if profiling:
            return profile(names, chosen)
        return compare(names, chosen, asked.only, asked.json, asked.markdown)


if __name__ == "__main__":
    sys.exit(main())
