"""Compare data preparation with the tokenizer alone, and measure how full and how balanced micro-batches are. On a CPU.

python -m benchmarks.data                                  # rows of three shapes, made from a seed
python -m benchmarks.data chats.jsonl
python -m benchmarks.data chats.jsonl tools.jsonl --model smollm2_135m --template chatml

Preparation reads and checks the rows, renders and tokenizes them, finds and proves the loss mask, and makes the frames of the
token cache. datasets.map with the tokenizer alone only renders and tokenizes. Each runs in one process. The rows are repeated
until they are enough to measure.
"""

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.stream import write_rows
from hub import compose
from hub.data.tokens.template import TEMPLATES_FOLDER
from hub.testing import write_chats

ENOUGH_BYTES = 8 * 2**20
"""Minimum size of the measured file. Less is prepared in one process, in too short a time to measure."""


def write_shapes(folder: Path) -> list[Path]:
    """Write chats of one question and answer, chats of several short turns, and chats of one to five longer ones."""
    short, turns, long = (folder / f"{name}.jsonl" for name in ("short", "turns", "long"))
    write_rows(short, 20_000)
    write_chats(turns, 8_000)
    dice = random.Random(0)
    words = [word for line in TEMPLATES_FOLDER.parent.glob("*.py") for word in line.read_text(encoding="utf-8").split()]
    with long.open("w", encoding="utf-8") as stream:
        for _ in range(3_000):
            roles = ["user", "assistant"] * dice.randint(1, 5)
            messages = [{"role": role, "content": " ".join(dice.choices(words, k=25))} for role in roles]
            stream.write(json.dumps({"messages": messages}) + "\n")
    return [short, turns, long]


def speeds(cfg: Any, tokenizer: Any, base_path: Path, pairs: int) -> tuple[float, float, float, float]:
    """Measure the work of one process of each kind, one after the other, several times.

    Returns:
        Tokens per second of processor time of preparation and of datasets.map, the median of their ratios, and seconds of a
        preparation that finds its rows in the token cache.
    """
    import datasets

    from hub.data.prepare import prepare
    from hub.data.samples.mix import sources_of
    from hub.data.sources.entries import Cursor
    from hub.data.sources.read import rows_after
    from hub.data.streaming.frames import to_bytes
    from hub.data.tokens.encode import Encoder

    (source,) = sources_of(cfg.data)

    def ours() -> int:
        encode = Encoder(tokenizer, cfg.data, source, None)
        entries = rows_after(source.path, Cursor(), source.subset, source.split, stream=False)
        num_tokens = 0
        for items in encode.many(entry for entry, _ in entries):
            to_bytes(items)
            num_tokens += sum(item.num_tokens for item in items)
        return num_tokens

    def encode_row(row: dict[str, Any]) -> dict[str, Any]:
        text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
        return {"ids": tokenizer(text, add_special_tokens=False)["input_ids"]}

    datasets.disable_progress_bars()
    datasets.disable_caching()
    rows = datasets.load_dataset("json", data_files=cfg.data.path, split="train")

    def alone() -> int:
        return sum(map(len, rows.map(encode_row)["ids"]))

    measured = [(_per_second(ours), _per_second(alone)) for _ in range(pairs)]
    prepare(cfg, tokenizer, 10**6, base_path, print)
    begin = time.perf_counter()
    prepare(cfg, tokenizer, 10**6, base_path, print)
    again = time.perf_counter() - begin
    first, second = (median(values) for values in zip(*measured, strict=True))
    return first, second, median(one / other for one, other in measured), again


def _per_second(work: Callable[[], int]) -> float:
    """Tokens per second of processor time, which other work on the machine changes less than the time on the clock."""
    begin = time.process_time()
    num_tokens = work()
    return num_tokens / (time.process_time() - begin)


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
    parser.add_argument("files", nargs="*", type=Path, help="JSONL files whose rows have messages. None: three are made")
    parser.add_argument("--model", default="tiny", help="model whose tokenizer is used")
    parser.add_argument("--template", default="chatml")
    parser.add_argument("--pairs", type=int, default=3, help="how often both are measured, one after the other")
    asked = parser.parse_args()
    from hub.data.prepare import prepare
    from hub.data.tokens.tokenizer import load_tokenizer
    from hub.models.weights import local_weights

    speed_rows, packing_rows = [], []
    with tempfile.TemporaryDirectory() as folder:
        model = compose("algo=sft", f"model={asked.model}", "data=tiny").model
        base_path = local_weights(model, print)
        os.environ["HUB_CACHE"] = folder  # an empty cache
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as in the processes of preparation
        for file in asked.files or write_shapes(Path(folder)):
            large = Path(folder) / f"large-{file.name}"
            text = file.read_text(encoding="utf-8").rstrip("\n") + "\n"
            large.write_text(text * (1 + ENOUGH_BYTES // len(text)), encoding="utf-8")
            options = ["algo=sft", f"model={asked.model}", f"data.template={asked.template}"]
            cfg = compose(*options, f"data.path={large}")
            tokenizer = load_tokenizer(cfg, base_path)
            ours, alone, ratio, again = speeds(cfg, tokenizer, base_path, asked.pairs)
            speed_rows.append(f"| {file.stem} | {ours:,.0f} | {alone:,.0f} | {ratio:.2f} | {again:.2f} |")
            samples = prepare(compose(*options, f"data.path={file}"), tokenizer, 10**6).train
            for batch_size, bound in ((128, 8192), (256, 16384)):
                for world in (1, 2, 8):
                    filled, least, even, balance = packing(samples, batch_size, bound, world)
                    words = f"{file.stem} | {batch_size} | {bound} | {world}"
                    packing_rows.append(f"| {words} | {filled:.1%} | {least:.3f} | {even:.1%} | {balance:.3f} |")
    print("\n| data | preparation, tokens per CPU second | datasets.map | ratio | from the token cache, seconds |")
    print("| --- | --- | --- | --- | --- |", *speed_rows, sep="\n")
    print("\n| data | batch | bound | ranks | bound filled | micro-batches over minimum | of the fullest | worst balance |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", *packing_rows, sep="\n")


if __name__ == "__main__":
    main()
