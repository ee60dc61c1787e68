"""The works of `python -m benchmarks`: what is trained, on rows of which lengths, and what the hub is told about it."""

import json
import math
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.shapes import SHAPES

SPARE = 1.25
"""Rows that are written over those that the steps take: whoever packs by itself takes some more or less."""

STEADY = {"torch_compile": "layers"}
"""A run of so few steps would not be worth compiling, and is here to show how fast a long one is."""


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Tokens of the rows."""

    longest: int
    """Of a row, and of a row that several are packed into."""

    mean: int | None = None
    """Log-normal with this mean, deviation 0.9 of the logarithm, cut off at `longest`. None: all have `longest`."""

    def draw(self, count: int) -> list[int]:
        """So many lengths, the same each time."""
        if self.mean is None:
            return [self.longest] * count
        dice, spread = random.Random(3407), 0.9
        middle = math.log(self.mean) - spread**2 / 2
        return [max(16, min(self.longest, round(dice.lognormvariate(middle, spread)))) for _ in range(count)]


RAGGED = Lengths(longest=2048, mean=500)
FULL = Lengths(longest=2048)


@dataclass(frozen=True, kw_only=True)
class Work:
    """One row of work. What `ours` does not name is left to the hub."""

    algo: str
    shape: str
    lengths: Lengths = RAGGED
    batch: int = 32
    """Samples of a step."""

    micro_rows: int = 4
    """Rows of `lengths.longest` tokens in a micro-batch of those who want it said."""

    ours: dict[str, Any] = field(default_factory=lambda: dict(STEADY))
    """Options of the hub."""

    gpus: int = 1
    """At least so many; with more than one, all that are there."""

    least_memory: bool = False
    """Who has a switch between speed and memory turns it to memory."""

    search: bool = False
    """The longest row that fits is looked for."""

    peers: tuple[str, ...] | None = None
    """None: all. Empty: nobody else can do it."""

    compared_with: str | None = None
    """The work whose peers are the yardstick, where nobody else can do this one."""

    @property
    def kind(self) -> str:
        """full, lora or qlora."""
        return {"sft": "full", "lora_sft": "lora", "qlora_sft": "qlora"}[self.algo]

    @property
    def flops(self) -> int:
        """Operations per token and weight: two forward and two for the gradient of the input; two more where weights learn."""
        return 6 if self.kind == "full" else 4

    @property
    def packed(self) -> bool:
        """Whether several rows go into one."""
        return self.lengths.mean is not None


LEAST = STEADY | {"max_tokens_per_gpu": 4096, "gradient_checkpointing": "all", "activation_offload": "all"}
WORKS: dict[str, Work] = {
    "full_1b": Work(algo="sft", shape="1b", batch=64),
    "full_1b_bf16": Work(
        algo="sft", shape="1b", batch=64, ours=STEADY | {"master_weights": False, "max_tokens_per_gpu": 8192},
        peers=(), compared_with="full_1b",
    ),
    "full_1b_fp8": Work(
        algo="sft", shape="1b", batch=64, ours=STEADY | {"precision": "fp8"}, peers=(), compared_with="full_1b"
    ),
    "lora_8b": Work(algo="lora_sft", shape="8b"),
    "lora_8b_least_memory": Work(
        algo="lora_sft", shape="8b", lengths=FULL, batch=2, micro_rows=2, ours=LEAST, least_memory=True
    ),
    "lora_8b_fp8": Work(
        algo="lora_sft", shape="8b", ours=STEADY | {"precision": "fp8"}, peers=(), compared_with="lora_8b"
    ),
    "qlora_8b": Work(algo="qlora_sft", shape="8b"),
    "qlora_8b_least_memory": Work(
        algo="qlora_sft", shape="8b", lengths=FULL, batch=2, micro_rows=2, ours=LEAST, least_memory=True
    ),
    "full_8b": Work(algo="sft", shape="8b", batch=64, ours=STEADY | {"strategy": "fsdp"}, gpus=2),
    "long_context": Work(
        algo="qlora_sft", shape="8b", lengths=Lengths(longest=8192), batch=1, micro_rows=1,
        ours=STEADY | {"gradient_checkpointing": "all", "activation_offload": "all"}, least_memory=True, search=True,
    ),
    "tiny": Work(algo="lora_sft", shape="tiny", lengths=Lengths(longest=256, mean=60), batch=8, micro_rows=2, ours={}),
}  # fmt: skip
"""`tiny` runs anywhere, to see that it works."""


def write_rows(file: Path, work: Work, steps: int) -> dict[str, float]:
    """Write JSONL with random tokens, all of them trained on: enough for the steps.

    Returns:
        `tokens` and `squares`: the mean of the rows' lengths, and of their squares.
    """
    lengths = work.lengths.draw(math.ceil(work.batch * steps * (SPARE if work.packed else 1)))
    dice, vocab = random.Random(0), SHAPES[work.shape]["vocab_size"]
    with file.open("w", encoding="utf-8") as stream:
        for length in lengths:
            # The first numbers are special tokens.
            ids = [dice.randrange(3, vocab) for _ in range(length)]
            stream.write(json.dumps({"input_ids": ids, "labels": ids}) + "\n")
    return {"tokens": sum(lengths) / len(lengths), "squares": sum(length**2 for length in lengths) / len(lengths)}
