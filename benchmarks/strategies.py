"""Compare strategies: loss, tokens/s and memory of the same training on one process, and on several by each strategy.

python -m benchmarks.strategies                        # a Llama of 1B shape with random weights, on all visible GPUs
python -m benchmarks.strategies --shape tiny --processes 2 --steps 3     # a quick check that runs anywhere
"""

import argparse
import statistics
from importlib.util import find_spec

import hub
from benchmarks.shapes import SHAPES, made
from hub.system.gpus import num_visible_gpus


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--processes", type=int, default=num_visible_gpus() or 2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--only", nargs="*", default=[], help="names of rows")
    asked = parser.parse_args()
    model = made(asked.shape)
    several = {"nproc_per_node": asked.processes}
    variants: dict[str, tuple[str, dict[str, object]]] = {}
    for algo in ("sft", "lora_sft"):
        variants[f"{algo}, one process"] = (algo, {"nproc_per_node": 1})
        zero = ("zero1", "zero2", "zero3") if algo == "sft" and find_spec("deepspeed") else ()
        for strategy in ("ddp", "fsdp", *zero):
            variants[f"{algo}, {strategy}"] = (algo, {**several, "strategy": strategy})
    if num_visible_gpus():
        variants["qlora_sft, one process"] = ("qlora_sft", {"nproc_per_node": 1})
        for strategy in ("ddp", "fsdp"):
            variants[f"qlora_sft, {strategy}"] = ("qlora_sft", {**several, "strategy": strategy})
    if num_visible_gpus() > 1:
        variants["lora_sft, split"] = ("lora_sft", {"strategy": "split"})
    rows = []
    for name, (algo, options) in variants.items():
        if asked.only and name not in asked.only:
            continue
        result = hub.run(
            algo, model=model, data=model / "chats.jsonl", learning_rate=1e-5 if algo == "sft" else 2e-4, num_epochs=9,
            max_steps=asked.steps, effective_batch_size=64, max_tokens_per_gpu=4096, output_dir="runs/benchmarks", **options,
        )  # fmt: skip
        lines = result.metrics
        speed = statistics.median(line["tokens_per_second"] for line in lines)
        rows.append((name, speed, result.peak_memory_gb, lines[0]["loss"], lines[-1]["loss"]))
    print(f"\n{asked.shape} shape, 64 samples per step, micro-batches of at most 4096 tokens, {asked.processes} processes\n")
    print("| training | tokens/s (median step) | ratio | peak GB per process | loss of step 1 | of the last |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, speed, memory, first, last in rows:
        base = next(row[1] for row in rows if row[0].split(",")[0] == name.split(",")[0])
        print(f"| {name} | {speed:,.0f} | {speed / base:.2f} | {memory:.1f} | {first:.4f} | {last:.4f} |")


if __name__ == "__main__":
    main()
