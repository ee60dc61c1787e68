"""The same training on one process, and shared over several: loss, tokens/s and memory of each strategy, side by side.

python -m benchmarks.strategies                        # a Llama of 1B shape with random weights, on the GPUs that are there
python -m benchmarks.strategies --shape tiny --processes 2 --steps 3     # anywhere, to see that it works
"""

import argparse
import json
import random
import statistics
from pathlib import Path

import hub
from hub.cache import cache_dir, make_once
from hub.preflight import num_visible_gpus

SHAPES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 512},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256},
}  # fmt: skip
"""Llama 3.2 1B's and Llama 3 8B's shapes. Weights are random: speed and memory do not depend on them."""


def make(folder: Path, shape: str) -> None:
    """A model folder and chats with lengths as real ones have them (log-normal, mean about 470 tokens, at most 1,900)."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from hub.testing import tokenizer

    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=8192, tie_word_embeddings=shape != "8b")
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    draw = random.Random(0)

    def words(count: int) -> str:
        return "".join(draw.choice("abcdefghijklmnopqrstuvwxyz ") for _ in range(count))

    with (folder / "chats.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(400):
            length = min(1900, max(16, int(draw.lognormvariate(5.9, 0.8))))
            turns = [("user", length // 3), ("assistant", 2 * length // 3)]
            row = {"messages": [{"role": role, "content": words(count)} for role, count in turns]}
            file.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--processes", type=int, default=num_visible_gpus() or 2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--only", nargs="*", default=[], help="names of rows")
    asked = parser.parse_args()
    model = make_once(cache_dir() / "benchmarks" / f"llama-{asked.shape}-1", lambda aside: make(aside, asked.shape))
    several = {"nproc_per_node": asked.processes}
    ways: dict[str, tuple[str, dict[str, object]]] = {}
    for algo in ("sft", "lora_sft"):
        ways[f"{algo}, one process"] = (algo, {"nproc_per_node": 1})
        for strategy in ("ddp", "fsdp"):
            ways[f"{algo}, {strategy}"] = (algo, {**several, "strategy": strategy})
    if num_visible_gpus():
        ways["qlora_sft, ddp"] = ("qlora_sft", {**several, "strategy": "ddp"})
    if num_visible_gpus() > 1:
        ways["lora_sft, split"] = ("lora_sft", {"strategy": "split"})
    rows = []
    for name, (algo, options) in ways.items():
        if asked.only and name not in asked.only:
            continue
        result = hub.run(
            algo, model=model, data=model / "chats.jsonl", learning_rate=1e-5 if algo == "sft" else 2e-4, num_epochs=9,
            max_steps=asked.steps, effective_batch_size=64, max_tokens_per_gpu=4096, output_dir="runs/benchmarks", **options,
        )  # fmt: skip
        lines = result.metrics
        speed = statistics.median(line["tokens_per_second"] for line in lines)
        rows.append((name, speed, result.peak_memory_gb, lines[0]["loss"], lines[-1]["loss"]))
    print(f"\n{asked.shape} shape, 64 samples a step, micro-batches of at most 4096 tokens, {asked.processes} processes\n")
    print("| training | tokens/s (median step) | ratio | peak GB per process | loss of step 1 | of the last |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, speed, memory, first, last in rows:
        base = next(row[1] for row in rows if row[0].split(",")[0] == name.split(",")[0])
        print(f"| {name} | {speed:,.0f} | {speed / base:.2f} | {memory:.1f} | {first:.4f} | {last:.4f} |")


if __name__ == "__main__":
    main()
