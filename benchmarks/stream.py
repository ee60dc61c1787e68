"""Measure training from streams of few and of many rows: seconds to the first step, and memory of each process.

python -m benchmarks.stream                            # 100,000 and 1,000,000 rows, a tiny model, on a CPU
python -m benchmarks.stream --rows 1000 10000
"""

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import psutil

from hub.result import read_metrics

OPTIONS = ["algo=sft", "model=tiny", "model.dtype=float32", "launch.nproc_per_node=1", "data.streaming=true",
           "algo.max_steps=30", "algo.effective_batch_size=64"]  # fmt: skip


def write_rows(file: Path, num_rows: int) -> None:
    """Write distinct chats of one question and one answer, about 200 bytes each."""
    words = [line.strip(".,()`\"'").lower() for line in (__doc__ or "").split()]
    dice = random.Random(0)
    with file.open("w", encoding="utf-8") as stream:
        for number in range(num_rows):
            asks, answers = (" ".join(dice.choices(words, k=8)) for _ in range(2))
            turns = [("user", f"{number}: {asks}?"), ("assistant", answers)]
            row = {"messages": [{"role": role, "content": text} for role, text in turns]}
            stream.write(json.dumps(row) + "\n")


def measured(file: Path, folder: Path) -> tuple[float, dict[str, float]]:
    """Return the seconds from the command to the first step, and the peak memory in MiB of each kind of process."""
    begun = time.monotonic()
    first, peak = 0.0, {"launcher": 0.0, "worker": 0.0, "reader": 0.0}
    parent = psutil.Popen([sys.executable, "-m", "hub", *OPTIONS, f"data.path={file}", f"output_dir={folder}"])
    while parent.poll() is None:
        if not first and read_metrics(folder / "latest" / "metrics.jsonl"):
            first = time.monotonic() - begun
        for process in [parent, *parent.children(recursive=True)]:
            try:
                command, size = " ".join(process.cmdline()), process.memory_info().rss / 2**20
            except psutil.Error:
                continue
            kind = "launcher" if process == parent else "worker" if "hub.launch.worker" in command else "reader"
            peak[kind] = max(peak[kind], size)
        time.sleep(0.05)
    if parent.returncode:
        raise SystemExit(f"the run ended with exit code {parent.returncode}")
    return first, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    asked = parser.parse_args()
    lines = []
    Path("runs").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir="runs", prefix="benchmark-stream-") as name:
        folder = Path(name).absolute()
        for num_rows in asked.rows:
            file = folder / f"{num_rows}.jsonl"
            write_rows(file, num_rows)
            size = file.stat().st_size / 2**20
            first, peak = measured(file, folder / str(num_rows))
            cells = [f"{num_rows:,}", f"{size:,.0f}", f"{first:.1f}", *(f"{value:,.0f}" for value in peak.values())]
            lines.append(f"| {' | '.join(cells)} |")
    print("\n| rows | MiB of text | seconds to the first step | launcher, MiB | worker, MiB | largest reader, MiB |")
    print("| --- | --- | --- | --- | --- | --- |", *lines, sep="\n")


if __name__ == "__main__":
    main()
