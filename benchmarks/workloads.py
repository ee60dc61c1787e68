"""The workloads of `python -m benchmarks`: what is trained, the lengths of the rows, and the hub's options."""

import json
import math
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.shapes import SHAPES

SPARE = 1.25
"""Rows written per row that the steps need: contenders with their own packing may take more."""

STEADY = {"torch_compile": "layers"}
"""Compile, as a long run does by default. These runs stand for long ones, but are too short for it."""


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Lengths of the rows in tokens."""

    longest: int
    """Maximum length of a row, and of a row that several are packed into."""

    mean: int | None = None
    """Mean of a log-normal distribution with sigma 0.9, cut off at `longest`. None: all rows have length `longest`."""

    def draw(self, count: int) -> list[int]:
        """Return `count` lengths, the same each time."""
        if self.mean is None:
            return [self.longest] * count
        dice, spread = random.Random(3407), 0.9
        middle = math.log(self.mean) - spread**2 / 2
        return [max(16, min(self.longest, round(dice.lognormvariate(middle, spread)))) for _ in range(count)]


RAGGED = Lengths(longest=2048, mean=500)
FULL = Lengths(longest=2048)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is trained. Options that `ours` does not set are chosen by the hub."""

    algo: str
    shape: str
    lengths: Lengths = RAGGED
    batch: int = 32
    """Samples per step."""

    micro_rows: int = 4
    """Rows of `lengths.longest` tokens in a micro-batch, for peers that need it set."""

    ours: dict[str, Any] = field(default_factory=lambda: dict(STEADY))
    """Options of the hub."""

    pairs: bool = False
    """Whether rows are pairs of answers, for DPO. `batch` and `micro_rows` then count pairs, and each answer is up to
    `lengths.longest` tokens long."""

    gpus: int = 1
    """Minimum number of GPUs. If above 1, all visible GPUs are used."""

    least_memory: bool = False
    """Whether contenders prefer low memory to speed."""

    search: bool = False
    """Whether to search for the longest row that fits."""

    peers: tuple[str, ...] | None = None
    """Peers that can run it. None: all."""

    compared_with: str | None = None
    """Workload whose peers are the baseline, if no peer can run this one."""

    @property
    def kind(self) -> str:
        """Return full, lora or qlora."""
        what = self.algo.removesuffix("_sft").removesuffix("_dpo")
        return {"sft": "full", "dpo": "full"}.get(what, what)

    @property
    def flops(self) -> int:
        """Return the operations per token and weight: two forward, two for the input's gradient, two if the weight trains."""
        return 6 if self.kind == "full" else 4

    @property
    def packed(self) -> bool:
        """Return whether several rows are packed into one."""
        return self.lengths.mean is not None


LEAST = STEADY | {"max_tokens_per_gpu": 4096, "gradient_checkpointing": "all", "activation_offload": "all"}
DPO_PEERS = ("trl", "trl_tuned")
WORKLOADS: dict[str, Workload] = {
    "full_1b": Workload(algo="sft", shape="1b", batch=64),
    "full_1b_bf16": Workload(
        algo="sft", shape="1b", batch=64, ours=STEADY | {"master_weights": False, "max_tokens_per_gpu": 8192},
        peers=(), compared_with="full_1b",
    ),
    "full_1b_fp8": Workload(
        algo="sft", shape="1b", batch=64, ours=STEADY | {"precision": "fp8"}, peers=(), compared_with="full_1b"
    ),
    "lora_8b": Workload(algo="lora_sft", shape="8b"),
    "lora_8b_least_memory": Workload(
        algo="lora_sft", shape="8b", lengths=FULL, batch=2, micro_rows=2, ours=LEAST, least_memory=True
    ),
    "lora_8b_fp8": Workload(
        algo="lora_sft", shape="8b", ours=STEADY | {"precision": "fp8"}, peers=(), compared_with="lora_8b"
    ),
    "qlora_8b": Workload(algo="qlora_sft", shape="8b"),
    "qlora_8b_least_memory": Workload(
        algo="qlora_sft", shape="8b", lengths=FULL, batch=2, micro_rows=2, ours=LEAST, least_memory=True
    ),
    "full_8b": Workload(algo="sft", shape="8b", batch=64, ours=STEADY | {"strategy": "fsdp"}, gpus=2),
    "long_context": Workload(
        algo="qlora_sft", shape="8b", lengths=Lengths(longest=8192), batch=1, micro_rows=1,
        ours=STEADY | {"gradient_checkpointing": "all", "activation_offload": "all"}, least_memory=True, search=True,
    ),
    "dpo_1b": Workload(algo="dpo", shape="1b", batch=32, pairs=True, peers=DPO_PEERS),
    "lora_dpo_1b": Workload(algo="lora_dpo", shape="1b", batch=32, pairs=True, peers=DPO_PEERS),
    "lora_dpo_8b": Workload(algo="lora_dpo", shape="8b", batch=16, micro_rows=2, pairs=True, peers=DPO_PEERS),
    "dpo_8b": Workload(
        algo="dpo", shape="8b", batch=32, micro_rows=1, ours=STEADY | {"strategy": "fsdp"}, gpus=2, pairs=True, peers=DPO_PEERS
    ),
    "dpo_tiny": Workload(
        algo="lora_dpo", shape="tiny", lengths=Lengths(longest=128, mean=60), batch=4, micro_rows=2, ours={}, pairs=True,
        peers=DPO_PEERS,
    ),
    "tiny": Workload(algo="lora_sft", shape="tiny", lengths=Lengths(longest=256, mean=60), batch=8, micro_rows=2, ours={}),
}  # fmt: skip
"""`tiny` and `dpo_tiny` run anywhere, as a quick check."""

PROMPT = 0.3
"""The part of an answer's tokens that is its prompt, in rows of pairs."""


def write_rows(file: Path, workload: Workload, steps: int) -> dict[str, float]:
    """Write JSONL with random tokens, all of them trained on: enough for the steps.

    Returns:
        `tokens` and `squares`: the mean of the rows' lengths, and of their squares.
    """
    if workload.pairs:
        return _write_pairs(file, workload, steps)
    lengths = workload.lengths.draw(math.ceil(workload.batch * steps * (SPARE if workload.packed else 1)))
    dice, vocab = random.Random(0), SHAPES[workload.shape]["vocab_size"]
    with file.open("w", encoding="utf-8") as stream:
        for length in lengths:
            # The first numbers are special tokens.
            ids = [dice.randrange(3, vocab) for _ in range(length)]
            stream.write(json.dumps({"input_ids": ids, "labels": ids}) + "\n")
    return {"tokens": sum(lengths) / len(lengths), "squares": sum(length**2 for length in lengths) / len(lengths)}


def _write_pairs(file: Path, workload: Workload, steps: int) -> dict[str, float]:
    """Write JSONL with random tokens: a prompt and two answers a row, which have the workload's lengths with it."""
    lengths = workload.lengths.draw(2 * workload.batch * steps)
    dice, vocab = random.Random(0), SHAPES[workload.shape]["vocab_size"]
    with file.open("w", encoding="utf-8") as stream:
        for first, second in zip(lengths[::2], lengths[1::2], strict=True):
            prompt = max(4, round(PROMPT * min(first, second)))
            ids = [[dice.randrange(3, vocab) for _ in range(count)] for count in (prompt, first - prompt, second - prompt)]
            stream.write(json.dumps(dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), ids, strict=True))) + "\n")
    return {"tokens": 2 * sum(lengths) / len(lengths), "squares": 2 * sum(length**2 for length in lengths) / len(lengths)}
