"""Measure what saving costs: time per step without checkpoints, with asynchronous and with synchronous ones. And the seconds
from a kill -9 to the first step of the resumed run.

python -m benchmarks.checkpoints                              # a Llama of 1B shape with random weights
python -m benchmarks.checkpoints --shape tiny --every 4       # a quick check that runs anywhere
python -m benchmarks.checkpoints --processes 2 --strategy fsdp --every 10 --json checkpoints.json
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.checkpoint_probe import FILE
from benchmarks.plugin import as_plugin
from benchmarks.shapes import SHAPES, made
from hub.result import read_metrics

MODES = {"none": "no checkpoints", "beside": "written beside training", "waiting": "training waits"}


def measured(
    command: list[str], environment: dict[str, str], mode: str, folder: Path, every: int, saves: int
) -> dict[str, float]:
    """Measure one run. The interval begins and ends just before a save, so it has a whole number of saves."""
    saving = [] if mode == "none" else [f"algo.save_every_steps={every}"]
    steps = [f"algo.max_steps={every * (saves + 2) + 1}", f"output_dir={folder / mode}"]
    subprocess.run([*command, *saving, *steps], env={**environment, "HUB_BENCHMARK_SAVES": mode}, check=True)
    lines = [json.loads(line) for line in (folder / mode / "latest" / FILE).read_text(encoding="utf-8").splitlines()]
    at = {line["step"]: line["time"] for line in lines if "step" in line}
    stopped = {line["saved"]: line["seconds"] for line in lines if "saved" in line}
    first, last = 2 * every, (saves + 2) * every
    later = [seconds for step, seconds in stopped.items() if first <= step < last]
    return {
        "seconds_per_step": (at[last] - at[first]) / (last - first),
        "first_save_stops_ms": 1000 * stopped[every] if stopped else 0.0,
        "a_save_stops_ms": 1000 * sum(later) / len(later) if later else 0.0,
    }


def killed_and_resumed(command: list[str], folder: Path, every: int) -> dict[str, float]:
    """Kill a run once its second checkpoint exists, resume it, and measure the seconds to its first new step."""
    steps = [f"algo.save_every_steps={every}", f"algo.max_steps={every * 1000}", f"output_dir={folder / 'killed'}"]
    parent = psutil.Popen([*command, *steps])
    run = folder / "killed" / "latest"
    metrics = run / "metrics.jsonl"
    while parent.poll() is None and not list(run.glob(f"checkpoints/step-{2 * every:08d}/manifest.json")):
        time.sleep(0.01)
    if parent.poll() is not None:
        raise SystemExit("the run ended before it could be killed")
    for process in [*parent.children(recursive=True), parent]:
        process.kill()
    begun = time.perf_counter()
    parent.wait()
    reached, before = read_metrics(metrics)[-1]["step"], metrics.stat().st_ino
    resumed = psutil.Popen([sys.executable, "-m", "hub", f"resume={run.resolve()}"])
    # The file is replaced by one that ends at the checkpoint; the first line after that is the first new step.
    while resumed.poll() is None and metrics.stat().st_ino == before:
        time.sleep(0.01)
    start = read_metrics(metrics)[-1]["step"] // every * every
    while resumed.poll() is None and read_metrics(metrics)[-1]["step"] <= start:
        time.sleep(0.01)
    seconds = time.perf_counter() - begun
    if resumed.poll() is not None:
        raise SystemExit("the resumed run ended before its first step")
    for process in [*resumed.children(recursive=True), resumed]:
        process.kill()
    resumed.wait()
    return {"seconds_to_first_step": seconds, "steps_done_again": reached - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--model", help="a model folder or id instead of the random model; its tokenizer needs a chat template")
    parser.add_argument("--algo", default="sft")
    parser.add_argument("--every", type=int, default=20, help="steps between saves")
    parser.add_argument("--saves", type=int, default=3, help="number of saves that are measured, after the first")
    parser.add_argument("--batch", type=int, default=16, help="samples per step")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--strategy", default="auto")
    parser.add_argument("--json", type=Path, help="file for the figures")
    asked = parser.parse_args()
    model = made(asked.shape)
    command = [
        sys.executable, "-m", "hub", f"algo={asked.algo}", f"model.path={asked.model or model}",
        f"data.path={model / 'chats.jsonl'}", "data.max_seq_len=2048", "data.eval_fraction=0",
        f"algo.effective_batch_size={asked.batch}", "algo.max_tokens_per_gpu=4096", "algo.num_epochs=100000",
        "algo.log_every_steps=1", "algo.keep_checkpoints=1",
        f"launch.nproc_per_node={asked.processes}", f"launch.strategy={asked.strategy}",
    ]  # fmt: skip
    Path("runs").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir="runs", prefix="benchmark-checkpoints-") as name:
        folder = Path(name).absolute()
        environment = as_plugin(folder, "benchmarks.checkpoint_probe")
        rows = {mode: measured(command, environment, mode, folder, asked.every, asked.saves) for mode in MODES}
        resumed = killed_and_resumed(command, folder, asked.every)
        size = sum(file.stat().st_size for file in (folder / "beside/latest/checkpoints").rglob("*") if file.is_file())
    base = rows["none"]["seconds_per_step"]
    print(
        f"\n{asked.model or asked.shape + ' shape'}, {asked.algo}, {asked.processes} process(es), "
        f"{asked.batch} samples a step, a checkpoint of {size / 2**20:,.1f} MB every {asked.every} steps\n"
    )
    print("| checkpoints | s per step | overhead | training stands still, ms per save | ms at the first |")
    print("| --- | --- | --- | --- | --- |")
    for mode, row in rows.items():
        row["overhead"] = row["seconds_per_step"] / base - 1
        print(
            f"| {MODES[mode]} | {row['seconds_per_step']:.4f} | {row['overhead']:+.1%} | {row['a_save_stops_ms']:.1f} | "
            f"{row['first_save_stops_ms']:.1f} |"
        )
    print(
        f"\nkill -9 to the first step of the resumed run: {resumed['seconds_to_first_step']:.1f} s; "
        f"{resumed['steps_done_again']:.0f} steps were repeated"
    )
    if asked.json:
        result = {"asked": {**vars(asked), "json": str(asked.json)}, "checkpoint_bytes": size, "ways": rows, "resume": resumed}
        asked.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
