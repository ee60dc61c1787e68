"""Compare data preparation with the tokenizer alone, and measure how full and how balanced micro-batches are. On a CPU.

python -m benchmarks.data chats.jsonl
python -m benchmarks.data chats.jsonl tools.jsonl --model smollm2_135m --template chatml

Preparation reads and checks the rows, renders and tokenizes them, finds and proves the loss mask, and writes the token cache.
It is compared with datasets.map and the tokenizer on as many processes. The rows are repeated until they are enough to measure.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from hub import compose

ENOUGH_BYTES = 8 * 2**20
"""Minimum size of the measured file. Less is prepared in one process, in too short a time to measure."""


def speeds(cfg: Any, tokenizer: Any, base_path: Path) -> tuple[float, float, float]:
    """Return tokens/s of the first preparation and of datasets.map, and seconds of the second, cached preparation."""
    import datasets

    from hub.data.prepare import prepare
    from hub.data.streaming.workers import num_cores

    begin = time.perf_counter()
    prepared = prepare(cfg, tokenizer, 10**6, base_path, print)
    first = time.perf_counter() - begin
    num_tokens = sum(len(sample) for sample in [*prepared.train, *prepared.evaluation])
    begin = time.perf_counter()
    prepare(cfg, tokenizer, 10**6, base_path, print)
    again = time.perf_counter() - begin

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
        return {"ids": tokenizer(text, add_special_tokens=False)["input_ids"]}

    datasets.disable_progress_bars()
    datasets.disable_caching()
    rows = datasets.load_dataset("json", data_files=cfg.data.path, split="train")
    begin = time.perf_counter()
    encoded = rows.map(encode, num_proc=num_cores())
    alone = time.perf_counter() - begin
    return num_tokens / first, sum(len(ids) for ids in encoded["ids"]) / alone, again


def packing(samples: Any, batch_size: int, bound: int, world: int) -> tuple[float, float, float, float]:
    """Measure the packing of the steps of one pass.

    Returns:
        Means over the steps: how much of the bound micro-batches fill, their number over the minimum, how much of the step's
        fullest micro-batch they fill. And the worst ratio of the most expensive rank to the mean.
    """
    from hub.train.batch import split as batches

    ratio = batches.cost_ratio(32, 4096, 8_000_000_000)
    fills, least, even, balance = [], [], [], []
    order = batches.epoch_order(len(samples), 42, 0)
    for start in range(0, len(order) - batch_size + 1, batch_size):
        lengths = [len(samples[i]) for i in order[start : start + batch_size]]
        parts = batches.split(lengths, world, bound, ratio)
        tokens = [sum(lengths[i] for i in micro) for rank in parts for micro in rank]
        fills.append(sum(lengths) / (len(tokens) * bound))
        even.append(sum(lengths) / (len(tokens) * max(tokens)))
        least.append(len(parts[0]) / -(-sum(lengths) // (world * bound)))
        costs = [sum(lengths[i] + ratio * lengths[i] ** 2 for micro in rank for i in micro) for rank in parts]
        balance.append(max(costs) * world / sum(costs))
    return sum(fills) / len(fills), sum(least) / len(least), sum(even) / len(even), max(balance)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="JSONL files whose rows have messages")
    parser.add_argument("--model", default="tiny", help="model whose tokenizer is used")
    parser.add_argument("--template", default="chatml")
    asked = parser.parse_args()
    from hub.data.prepare import prepare
    from hub.data.tokens.tokenizer import load_tokenizer
    from hub.models.weights import local_weights

    speed_rows, packing_rows = [], []
    with tempfile.TemporaryDirectory() as folder:
        model = compose("algo=sft", f"model={asked.model}", "data=tiny").model
        base_path = local_weights(model, print)
        os.environ["HUB_CACHE"] = folder  # an empty cache
        for file in asked.files:
            large = Path(folder) / file.name
            text = file.read_text(encoding="utf-8").rstrip("\n") + "\n"
            large.write_text(text * (1 + ENOUGH_BYTES // len(text)), encoding="utf-8")
            options = ["algo=sft", f"model={asked.model}", f"data.template={asked.template}"]
            cfg = compose(*options, f"data.path={large}")
            tokenizer = load_tokenizer(cfg, base_path)
            ours, alone, again = speeds(cfg, tokenizer, base_path)
            speed_rows.append(f"| {file.stem} | {ours:,.0f} | {alone:,.0f} | {ours / alone:.2f} | {again:.2f} |")
            samples = prepare(compose(*options, f"data.path={file}"), tokenizer, 10**6).train
            for batch_size, bound in ((128, 8192), (256, 16384)):
                for world in (1, 2, 8):
                    filled, least, even, balance = packing(samples, batch_size, bound, world)
                    words = f"{file.stem} | {batch_size} | {bound} | {world}"
                    packing_rows.append(f"| {words} | {filled:.1%} | {least:.3f} | {even:.1%} | {balance:.3f} |")
    print("\n| data | preparation, tokens/s | datasets.map, tokens/s | ratio | from the token cache, seconds |")
    print("| --- | --- | --- | --- | --- |", *speed_rows, sep="\n")
    print("\n| data | batch | bound | ranks | bound filled | micro-batches over minimum | of the fullest | worst balance |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", *packing_rows, sep="\n")


if __name__ == "__main__":
    main()
