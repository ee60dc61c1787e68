"""The hub beside its peers on the same work: tokens/s, ratio, memory, share of the GPU's peak, time to the first step.

python -m benchmarks lora_8b qlora_8b                          # the hub and each peer that is installed
python -m benchmarks full_1b --only ours trl --steps 6 --json full_1b.json --markdown full_1b.md
python -m benchmarks profile lora_8b                           # where the time of the hub's step goes
python -m benchmarks tiny --only ours trl --steps 4            # anywhere, to see that it works

Each runs in a process of its own on the same model and the same rows. A peer that lives in another environment is named by a
variable: HUB_PEER_UNSLOTH="PYTHONPATH=/folder LD_LIBRARY_PATH=/other python3", see benchmarks/README.md.
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
from benchmarks.works import WORKS, Lengths, Work, write_rows
from hub import compose
from hub.system.gpus import num_visible_gpus

SEARCH_STEPS = 2
"""Of a try at a long row: the second has the optimizer's state."""

TINY = Lengths(longest=256, mean=60)
"""In place of a work's own lengths where it is done in the tiny shape."""


@dataclass(frozen=True)
class Asked:
    """What the command line says."""

    steps: int
    batch: int | None
    shape: str | None
    time_limit: float
    folder: Path


def work_of(name: str, asked: Asked) -> Work:
    """A work, smaller where that was asked for."""
    work = WORKS[name]
    if asked.shape == "tiny" and work.shape != "tiny":
        lengths = replace(TINY, mean=TINY.mean if work.packed else None)
        work = replace(work, lengths=lengths, ours={k: v for k, v in work.ours.items() if k != "max_tokens_per_gpu"})
    return replace(work, shape=asked.shape or work.shape, batch=asked.batch or work.batch)


def num_processes(work: Work) -> int:
    """One, or one for each GPU."""
    return max(1, num_visible_gpus()) if work.gpus > 1 else 1


def left_out(work: Work) -> str | None:
    """Why a work can't be done here; None when it can."""
    gpus = num_visible_gpus()
    if work.gpus > max(1, gpus):
        return f"it needs {work.gpus} GPUs, and there are {gpus}"
    cfg = compose(f"algo={work.algo}")
    known = {item.name for part in (cfg.algo, cfg.launch) for item in fields(part)}
    if unknown := sorted(set(work.ours) - known):
        return f"the hub has no option {', '.join(unknown)}"
    return None


def make_task(way: str, work: Work, steps: int, folder: Path) -> Task:
    """The work as one that takes part is told it; the rows are written once for all."""
    rows, about = folder / "rows.jsonl", folder / "rows.json"
    if not about.is_file():
        about.write_text(json.dumps(write_rows(rows, work, steps)), encoding="utf-8")
    return Task(
        way=way,
        kind=work.kind,
        model=str(made_for(work.shape, work.lengths.longest)),
        rows=str(rows),
        steps=steps,
        batch=work.batch,
        longest=work.lengths.longest,
        mean=json.loads(about.read_text(encoding="utf-8"))["tokens"],
        packed=work.packed,
        micro_rows=work.micro_rows,
        gpus=num_processes(work),
        least_memory=work.least_memory,
        ours=work.ours,
    )


def attempt(way: str, peer: Peer, name: str, work: Work, steps: int, asked: Asked, limit: float, **variables: str) -> Row:
    """One run in a folder of its own."""
    shared = asked.folder / f"{name}-{work.lengths.longest}"
    own = shared / way
    own.mkdir(parents=True)
    task = make_task(way, work, steps, shared)
    try:
        return run(peer, name, task, own, limit, variables)
    finally:
        if not variables:
            shutil.rmtree(own, ignore_errors=True)


def longest(way: str, peer: Peer, name: str, work: Work, asked: Asked) -> Row:
    """The longest row that fits, within the time limit."""
    ends = time.monotonic() + asked.time_limit
    best: list[Row] = []
    capacity: list[float] = []
    failures: list[str] = []

    def try_one(tokens: int) -> Fit | Literal[False] | None:
        left = ends - time.monotonic()
        if left <= 0:
            failures.append("the time was up")
            return None
        smaller = replace(work, lengths=Lengths(longest=tokens), ours=work.ours | {"max_tokens_per_gpu": tokens})
        row = attempt(way, peer, name, smaller, SEARCH_STEPS, asked, left)
        said = row.failure or f"{row.tokens_per_second:,.0f} tokens/s, {row.peak_gib} GiB"
        print(f"  {peer.title}: {tokens:,} tokens: {said}", flush=True)
        if row.out_of_memory:
            return False
        if row.tokens_per_second is None or row.peak_gib is None:
            failures.append(f"{tokens:,}: {row.failure or 'no GPU'}")
            return None
        capacity.append(row.about["gpu"]["total_bytes"])
        best.append(replace(row, longest=tokens))
        return Fit(tokens, row.peak_gib * 2**30)

    found = search(try_one, work.lengths.longest, lambda: capacity[-1] if capacity else None)
    row = next((row for row in best if row.longest == found.longest), Row(work=name, way=way, title=peer.title))
    words = [f"{found.too_long:,} is too long"] if found.too_long else []
    if failures and found.line_ends and not found.too_long:
        words.append(f"its memory would be full at about {found.line_ends:,}")
    return replace(row, failure="; ".join([*words, *failures]))


def rows_of(name: str, asked: Asked, ways: dict[str, Peer]) -> Iterator[Row]:
    """One row after the other of a work."""
    work = work_of(name, asked)
    if reason := left_out(work):
        print(f"{name} is left out: {reason}", flush=True)
        return
    made_for(work.shape, work.lengths.longest)  # not to be counted as the first one's time
    for way, peer in ways.items():
        if way != "ours" and work.peers is not None and way not in work.peers:
            continue
        if refusal := peer.refuses(work.kind, num_processes(work)):
            print(f"{name} without {peer.title}: {refusal}", flush=True)
        elif work.search:
            yield longest(way, peer, name, work, asked)
        else:
            yield attempt(way, peer, name, work, asked.steps, asked, asked.time_limit)


def compare(names: list[str], asked: Asked, only: list[str] | None, json_file: Path | None, markdown_file: Path | None) -> int:
    """Print each row when it is there, then the table. The files are written anew after each row, so nothing is lost."""
    ways = installed(only)
    gpu, gpus = table.gpu_name(), num_visible_gpus()
    command = " ".join(["python -m benchmarks", *map(shlex.quote, sys.argv[1:])])
    machine = {"gpu": gpu, "gpus": gpus, "cores": os.cpu_count(), "date": date.today().isoformat(), "command": command}
    rows: list[Row] = []

    def used(row: Row) -> tuple[str, str | None, int]:
        work = work_of(row.work, asked)
        return work.shape, gpu, num_processes(work)

    print(table.line(table.HEAD))
    print(table.line(["---"] * len(table.HEAD)), flush=True)
    for name in names:
        for row in rows_of(name, asked, ways):
            rows.append(row)
            print(table.line(table.cells(row, *used(row))), flush=True)
            write(rows, machine, used, json_file, markdown_file)
    print(f"\n{write(rows, machine, used, json_file, markdown_file)}")
    return 0 if any(row.tokens_per_second for row in rows) else 1


def write(rows: list[Row], machine: dict[str, Any], used: Any, json_file: Path | None, markdown_file: Path | None) -> str:
    """The table so far, into the files that were asked for as well."""
    versions = {row.title: row.about["versions"] for row in rows if row.about.get("versions")}
    text = table.markdown([table.cells(row, *used(row), rows) for row in rows], machine, versions)
    if markdown_file:
        markdown_file.write_text(text, encoding="utf-8")
    if json_file:
        shares = [{"ratio": table.ratio(row, rows), "share_of_peak": table.share_of_peak(row, *used(row))} for row in rows]
        found = [row.as_json() | share for row, share in zip(rows, shares, strict=True)]
        json_file.write_text(json.dumps({"machine": machine, "rows": found}, indent=2) + "\n", encoding="utf-8")
    return text


def installed(only: list[str] | None) -> dict[str, Peer]:
    """Those who take part: named, and installed where they live. A line says who is not."""
    found, missing = {}, []
    for way, peer in peers().items():
        if only and way not in only:
            continue
        if Start.of(peer.environment).has(peer.needs):
            found[way] = peer
        else:
            missing.append(peer.title)
    if missing:
        print(f"not installed: {', '.join(missing)}\n", flush=True)
    return found


def profile(names: list[str], asked: Asked) -> int:
    """Where the time of the hub's step goes: two of the last steps of a run, under torch's profiler."""
    for name in names:
        work = work_of(name, asked)
        if reason := left_out(work):
            print(f"{name} is left out: {reason}")
            return 1
        last = max(4, asked.steps)
        peer = peers()["ours"]
        row = attempt("ours", peer, name, work, last, asked, asked.time_limit, HUB_BENCHMARK_PROFILE=f"{last - 2}:{last}")
        folder = asked.folder / f"{name}-{work.lengths.longest}"
        if not (folder / "ours" / "profile.json").is_file():
            print(f"{name}: {row.failure or 'no profile was written'}")
            return 1
        print(f"\n## {name}\n\n{row.about.get('how', '')}\n")
        print(step_profile.report(folder / "ours", work, folder / "rows.json", table.gpu_name(), num_processes(work)))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="+", metavar="WORK", help=f"[profile] and some of {', '.join(WORKS)}")
    parser.add_argument("--only", nargs="+", choices=peers(), help="who takes part")
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps; the later half of them counts")
    parser.add_argument("--batch", type=int, help="samples of a step, in place of the work's own number")
    parser.add_argument("--shape", choices=SHAPES, help="of the model, in place of the work's own")
    parser.add_argument("--time-limit", type=float, default=240.0, help="seconds for a row")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--markdown", type=Path, help="write the table there")
    asked = parser.parse_args()
    profiling = asked.works[0] == "profile"
    names = asked.works[1:] if profiling else asked.works
    if unknown := [name for name in names if name not in WORKS]:
        parser.error(f"{unknown[0]} is not allowed. Allowed: {', '.join(WORKS)}")
    if not names:
        parser.error(f"profile what? Allowed: {', '.join(WORKS)}")
    Path("runs").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir="runs", prefix="benchmark-", ignore_cleanup_errors=True) as name:
        chosen = Asked(asked.steps, asked.batch, asked.shape, asked.time_limit, Path(name).absolute())
        if profiling:
            return profile(names, chosen)
        return compare(names, chosen, asked.only, asked.json, asked.markdown)


if __name__ == "__main__":
    sys.exit(main())
