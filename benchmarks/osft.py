"""Compare OSFT with full fine-tuning, and with mini_trainer's OSFT if it is installed: set-up, tokens/s, memory.

python -m benchmarks.osft                             # a Llama of 1B shape with random weights, on one GPU
python -m benchmarks.osft --shape 8b                  # OSFT alone: full fine-tuning needs several GPUs
python -m benchmarks.osft --shape tiny --steps 4      # a quick check that runs anywhere
python -m benchmarks.osft --only mini_trainer --json osft.json

Trained weights, or coordinates of their change, are float32 with float32 Adam. The arithmetic is in bfloat16. Samples are
packed, 8192 tokens in a micro-batch. tokens/s is the median of the later half of the steps.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hub
from benchmarks.peers import mini_trainer
from benchmarks.runner import speed
from benchmarks.shapes import SHAPES, made

CONTENDERS = ("sft", "osft cold", "osft", "osft strength", "mini_trainer")
"""`osft cold` computes the directions and takes two steps. `osft` reads them from the cache. Both have the weights' directions, as
mini_trainer has. `osft strength` is OSFT as one types it."""

RATIO = {"8b": 0.25}
DEFAULT_RATIO = 0.3
MAX_TOKENS = mini_trainer.MAX_TOKENS
BATCH = {"tiny": 8}
"""Samples per step by shape. Other shapes take as many as fill four micro-batches."""

PEER_BATCH, PEER_STEPS = 32, 5
"""Samples per step and number of steps of the peer. They are few, since a step takes seconds."""

MARKS = {
    "begin": "Work distribution complete, starting SVD",
    "end": "Distributed SVD computation complete",
}
"""The lines that mini_trainer logs before and after it decomposes all matrices."""


def ours(contender: str, shape: str, model: Path, steps: int, folder: Path, memory: float | None) -> dict[str, Any]:
    """Run the hub in a separate process."""
    algo = contender.partition(" ")[0]
    cold = contender == "osft cold"
    options: dict[str, Any] = {}
    if algo == "osft" and contender != "osft strength":
        options = {"subspace": "weights", "unfreeze_rank_ratio": RATIO.get(shape, DEFAULT_RATIO)}
    elif algo == "osft" and shape in RATIO:
        options = {"unfreeze_rank_ratio": RATIO[shape]}
    result = hub.run(
        algo, model=model, data=model / "chats.jsonl", learning_rate=1e-5, num_epochs=99, max_steps=2 if cold else steps,
        effective_batch_size=BATCH.get(shape, 64), max_tokens_per_gpu=MAX_TOKENS, torch_compile="none" if cold else "layers",
        nproc_per_node=1, gpu_memory_gb=None if algo == "sft" else memory, output_dir=folder, **options,
    )  # fmt: skip
    plan = json.loads((result.run_path / "plan.json").read_text(encoding="utf-8"))
    shutil.rmtree(result.run_path / "model")
    figures: dict[str, Any] = {"set_up_seconds": plan.get("directions_seconds")}
    if not cold:
        speeds = [line["tokens_per_second"] for line in result.metrics]
        figures |= {"tokens_per_second": statistics.median(speeds[len(speeds) // 2 :]), "peak_gb": result.peak_memory_gb}
        figures |= {name: plan.get(name) for name in ("layers_recomputed", "compiled", "attention", "fused_head")}
    return figures


def peer(shape: str, model: Path, folder: Path) -> dict[str, Any]:
    """Run mini_trainer's OSFT on the same samples."""
    rows = tokens(model, folder / "tokens.jsonl")
    command = [sys.executable, *mini_trainer.options(model, rows, folder / "peer", batch=PEER_BATCH, steps=PEER_STEPS)]
    command += ["--osft", f"--osft-unfreeze-rank-ratio={RATIO.get(shape, DEFAULT_RATIO)}"]
    (folder / "peer").mkdir(parents=True)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    marks: dict[str, float] = {}
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert child.stdout is not None
    for line in child.stdout:
        print(line, end="", flush=True)
        for name, words in MARKS.items():
            if words in line:
                marks.setdefault(name, time.monotonic())
    if child.wait():
        return {"failure": f"mini_trainer ended with exit code {child.returncode}"}
    steps = mini_trainer.steps(folder / "peer")
    return {
        "set_up_seconds": round(marks["end"] - marks["begin"], 2) if len(marks) == len(MARKS) else None,
        "tokens_per_second": speed(steps),
        "peak_gb": round(max(step.peak_bytes or 0 for step in steps) / 2**30, 3),
    }


def tokens(model: Path, file: Path) -> Path:
    """Write the chats as tokens in mini_trainer's format, enough for its steps."""
    from transformers import AutoTokenizer

    from hub.data.prepare import prepare

    cfg = hub.compose("algo=sft", values={"model": {"path": str(model)}, "data": {"path": str(model / "chats.jsonl")}})
    samples = prepare(cfg, AutoTokenizer.from_pretrained(model), None).train
    with file.open("w", encoding="utf-8") as stream:
        for sample in samples[: PEER_BATCH * PEER_STEPS]:
            ids = sample.input_ids.tolist()
            labels = [token if trained else -100 for token, trained in zip(ids, sample.loss_mask, strict=True)]
            count = sum(label != -100 for label in labels[1:])
            row = {"input_ids": ids, "labels": labels, "len": len(ids), "num_loss_counted_tokens": count}
            stream.write(json.dumps(row) + "\n")
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--gpu-memory-gb", type=float, help="memory that osft may use")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, help="rows of the table")
    parser.add_argument("--json", type=Path, help="file for the figures")
    asked = parser.parse_args()
    has_peer = find_spec("mini_trainer") is not None
    if asked.only and "mini_trainer" in asked.only and not has_peer:
        raise SystemExit("mini_trainer is not installed. Type pip install rhai-innovation-mini-trainer")
    fitting = CONTENDERS[1:3] if asked.shape == "8b" else CONTENDERS
    chosen = [
        contender
        for contender in CONTENDERS
        if contender in (asked.only or fitting) and (contender != "mini_trainer" or has_peer)
    ]
    model = made(asked.shape)
    rows: dict[str, dict[str, Any]] = {}
    Path("runs").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir="runs", prefix="benchmark-osft-") as name:
        folder = Path(name).absolute()
        os.environ["HUB_CACHE"] = str(folder / "cache")  # empty, so that the first set-up computes the directions
        for contender in chosen:
            begun = time.monotonic()
            rows[contender] = (
                peer(asked.shape, model, folder)
                if contender == "mini_trainer"
                else ours(contender, asked.shape, model, asked.steps, folder, asked.gpu_memory_gb)
            )
            rows[contender]["seconds"] = round(time.monotonic() - begun, 1)
            print(f"{contender}: {rows[contender]}", flush=True)
    ratio = RATIO.get(asked.shape, DEFAULT_RATIO)
    base = rows.get("sft", {}).get("tokens_per_second")
    print(f"\n{asked.shape} shape, ratio {ratio}, packed, {MAX_TOKENS} tokens in a micro-batch\n")
    print("| training | set-up, s | from the cache, s | tokens/s | ratio to sft | peak GB |")
    print("| --- | --- | --- | --- | --- | --- |")
    cold = rows.get("osft cold", {}).get("set_up_seconds")
    for contender, row in rows.items():
        if contender == "osft cold" or "failure" in row:
            continue
        set_up = {"sft": (None, None), "osft": (cold, row["set_up_seconds"] if cold else None)}
        first, again = set_up.get(contender, (row["set_up_seconds"], None))
        if contender == "osft" and cold is None:
            first = row["set_up_seconds"]
        cells = [f"{value:.1f}" if value is not None else "" for value in (first, again)]
        speed = row["tokens_per_second"]
        cells += [f"{speed:,.0f}", f"{speed / base:.2f}" if base else "", f"{row['peak_gb']:.1f}"]
        print(f"| {contender} | {' | '.join(cells)} |")
    if asked.json:
        result = {"shape": asked.shape, "ratio": ratio, "max_tokens": MAX_TOKENS, "rows": rows}
        asked.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
