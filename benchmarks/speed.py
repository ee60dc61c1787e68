"""tokens/s and memory of one training on one GPU, with eager and with compiled layers, side by side.

python -m benchmarks.speed                       # all of them, on random weights in the shapes of Llama 3
python -m benchmarks.speed lora_8b --steps 12
python -m benchmarks.speed tiny --steps 4        # anywhere, to see that it works

Nothing is tuned by hand but `algo.torch_compile`: what `auto` chose for the rest stands in the table.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import hub
from benchmarks.shapes import made

WORKS: dict[str, tuple[str, str]] = {
    "full_1b": ("sft", "1b"),
    "lora_8b": ("lora_sft", "8b"),
    "qlora_8b": ("qlora_sft", "8b"),
    "tiny": ("lora_sft", "tiny"),
}
"""Algorithm and shape."""


def row(work: str, compiled: str, steps: int) -> dict[str, Any]:
    """One run: its speed when it is steady, its memory, and what was chosen for it."""
    algo, shape = WORKS[work]
    model = made(shape)
    result = hub.run(
        algo, model=model, data=model / "chats.jsonl", max_steps=steps, num_epochs=99, torch_compile=compiled,
        effective_batch_size=64, nproc_per_node=1, output_dir="runs/benchmarks",
    )  # fmt: skip
    plan = json.loads((result.run_path / "plan.json").read_text(encoding="utf-8"))
    lines = result.metrics
    return {
        "work": work,
        "layers": "compiled" if plan["compiled"] else "eager",
        "tokens_per_second": statistics.median(line["tokens_per_second"] for line in lines[len(lines) // 2 :]),
        "peak_gb": result.peak_memory_gb,
        "tokens_per_micro_batch": plan["max_tokens_per_gpu"],
        "layers_recomputed": f"{plan['layers_recomputed']} of {plan['num_layers']}",
        "attention": plan["attention"],
        "fused_head": plan["fused_head"],
        "seconds": result.seconds,
        "last_loss": lines[-1]["loss"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", help=f"some of {', '.join(WORKS)}; none: all but tiny")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    asked = parser.parse_args()
    if unknown := [work for work in asked.works if work not in WORKS]:
        parser.error(f"{unknown[0]} is not allowed. Allowed: {', '.join(WORKS)}")
    works = asked.works or [work for work in WORKS if work != "tiny"]
    rows = [row(work, compiled, asked.steps) for work in works for compiled in ("none", "layers")]
    print(
        "\n| work | layers | tokens/s (median of the later half) | peak GB | tokens per micro-batch | recomputed | attention |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for found in rows:
        print(
            f"| {found['work']} | {found['layers']} | {found['tokens_per_second']:,.0f} | {found['peak_gb']:.1f} | "
            f"{found['tokens_per_micro_batch']} | {found['layers_recomputed']} | {found['attention']} |"
        )
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
