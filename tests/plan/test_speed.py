"""Predicted tokens per second beside what was measured (docs/performance.md, docs/osft_evidence.md)."""

from dataclasses import replace

import pytest

from benchmarks.shapes import SHAPES, num_multiplied
from benchmarks.workloads import RAGGED
from hub.plan.speed import Way, shape_of, speed_of
from hub.system.known_gpus import shipped_gpus

GPUS = shipped_gpus()


class Config:
    def __init__(self, **values):
        self.__dict__.update(values)


def llama(name):
    size = SHAPES[name]
    multiplied = num_multiplied(name)
    extra = size["hidden_size"] * size["vocab_size"] if name == "8b" else 0
    return shape_of(Config(**size), multiplied, multiplied + extra)


def mean_square():
    lengths = RAGGED.draw(192)
    return sum(n * n for n in lengths) / sum(lengths), sum(lengths) / len(lengths)


SQUARE, MEAN = mean_square()
ROWS_OF_PACKED = {"mean_square": SQUARE, "tokens_per_step": 32 * MEAN}
FULL_ROWS = {"mean_square": 2048}
LORA = Way(num_trained=42e6, max_tokens=16384)
FULL = Way(num_trained=1.24e9, max_tokens=16384)
LEAST = replace(LORA, max_tokens=4096, checkpointed=1.0, flash4=True, offload=True)
FOUR_BIT = 0.52
QWEN3_8B = shape_of(
    Config(
        hidden_size=4096, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, head_dim=128, vocab_size=151936
    ),
    36 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 12288) + 4096 * 151936,
    8.19e9,
)
PHI3_MINI = shape_of(
    Config(hidden_size=3072, num_hidden_layers=32, num_attention_heads=32, vocab_size=32064),
    32 * (4 * 3072**2 + 3 * 3072 * 8192) + 3072 * 32064,
    3.82e9,
)

MEASURED = [
    ("LoRA 8B, flash-attn-4", llama("8b"), replace(LORA, flash4=True), "h200", ROWS_OF_PACKED, 16942),
    ("LoRA 8B", llama("8b"), LORA, "h200", ROWS_OF_PACKED, 16248),
    ("LoRA 8B, flash-attn-4", llama("8b"), replace(LORA, flash4=True, max_tokens=13000), "h100", ROWS_OF_PACKED, 15845),
    ("LoRA 8B", llama("8b"), replace(LORA, max_tokens=13000), "h100", ROWS_OF_PACKED, 15322),
    ("LoRA Qwen3 8B", QWEN3_8B, replace(LORA, max_tokens=13000), "h100", ROWS_OF_PACKED, 14634),
    ("LoRA Phi-3 mini", PHI3_MINI, LORA, "h100", ROWS_OF_PACKED, 27075),
    ("fp8 8B, flash-attn-4", llama("8b"), replace(LORA, fp8=True, flash4=True), "h200", ROWS_OF_PACKED, 23330),
    ("fp8 8B", llama("8b"), replace(LORA, fp8=True), "h200", ROWS_OF_PACKED, 22010),
    ("fp8 8B", llama("8b"), replace(LORA, fp8=True, max_tokens=13000), "h100", ROWS_OF_PACKED, 19812),
    ("QLoRA 8B", llama("8b"), replace(LORA, weight_bytes=FOUR_BIT), "h200", ROWS_OF_PACKED, 15469),
    ("full 1B", llama("1b"), FULL, "h200", ROWS_OF_PACKED | {"tokens_per_step": 64 * MEAN}, 63915),
    ("full 1B", llama("1b"), FULL, "h100", ROWS_OF_PACKED | {"tokens_per_step": 64 * MEAN}, 61849),
    (
        "full 1B, bfloat16",
        llama("1b"),
        replace(FULL, state_bytes=8, max_tokens=8192),
        "h200",
        ROWS_OF_PACKED | {"tokens_per_step": 64 * MEAN},
        62087,
    ),
    ("full 1B, fp8", llama("1b"), replace(FULL, fp8=True), "h200", ROWS_OF_PACKED | {"tokens_per_step": 64 * MEAN}, 72940),
    (
        "full 8B, FSDP2, flash-attn-4",
        llama("8b"),
        replace(FULL, num_trained=8.03e9, world=2, strategy="fsdp", flash4=True),
        "h200",
        ROWS_OF_PACKED | {"tokens_per_step": 64 * MEAN},
        22203,
    ),
    ("LoRA 8B, least memory", llama("8b"), LEAST, "h100", {"mean_square": 2048, "tokens_per_step": 4096}, 11599),
    (
        "QLoRA 8B, least memory",
        llama("8b"),
        replace(LEAST, weight_bytes=FOUR_BIT),
        "h100",
        {"mean_square": 2048, "tokens_per_step": 4096},
        11021,
    ),
    (
        "QLoRA 8B, 65,536 tokens",
        llama("8b"),
        replace(LEAST, weight_bytes=FOUR_BIT, max_tokens=65536),
        "h200",
        {"mean_square": 65536, "tokens_per_step": 65536},
        5782,
    ),
    ("OSFT 1B", llama("1b"), Way(num_trained=0.35e9, max_tokens=8192, checkpointed=2 / 16), "h200", ROWS_OF_PACKED, 70672),
    ("OSFT 1B", llama("1b"), Way(num_trained=0.35e9, max_tokens=8192), "h100", ROWS_OF_PACKED, 63659),
    ("OSFT 8B", llama("8b"), Way(num_trained=1.9e9, max_tokens=8192, checkpointed=30 / 32), "h200", ROWS_OF_PACKED, 10836),
    (
        "OSFT 1B, full rows",
        llama("1b"),
        Way(num_trained=0.243e9, max_tokens=8192),
        "h200",
        FULL_ROWS | {"tokens_per_step": 16384},
        72701,
    ),
    ("LoRA 8B, full rows", llama("8b"), LORA, "h200", FULL_ROWS | {"tokens_per_step": 32768}, 15485),
    (
        "QLoRA 8B, least memory, 2,048 tokens",
        llama("8b"),
        replace(LEAST, weight_bytes=FOUR_BIT, max_tokens=2048, flash4=False),
        "h200",
        FULL_ROWS | {"tokens_per_step": 4096},
        7423,
    ),
]


@pytest.mark.parametrize(
    ("name", "shape", "way", "gpu", "work", "measured"), MEASURED, ids=[f"{row[0]}, {row[3]}" for row in MEASURED]
)
def test_what_was_measured_lies_within_ten_percent(name, shape, way, gpu, work, measured):
    found = speed_of(shape, way, GPUS[gpu], **work)
    print(f"{name} {gpu}: {found.middle:,.0f} / {measured:,} = {found.middle / measured - 1:+.1%}")
    assert found.middle == pytest.approx(measured, rel=0.1)
    assert found.low <= measured <= found.high


def test_a_small_model_waits_for_python_and_the_range_says_so():
    qwen = shape_of(
        Config(hidden_size=896, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2, vocab_size=151936),
        24 * (2 * 896 * 896 + 2 * 896 * 128 + 3 * 896 * 4864) + 896 * 151936,
        0.494e9,
    )
    found = speed_of(qwen, replace(LORA, num_trained=9e6, compiled=False), GPUS["h100"], **ROWS_OF_PACKED)
    assert found.limit == "launches"
    assert not found.measured
    assert "CPU" in found.because
    assert found.low < 59091 < found.high
    assert found.share_of_peak == pytest.approx(0.12, abs=0.02), "as the run itself counts it"


def test_what_costs_time_costs_time_and_what_is_unknown_is_wide():
    shape = llama("8b")
    base = speed_of(shape, LORA, GPUS["h200"], **ROWS_OF_PACKED)
    again = speed_of(shape, replace(LORA, checkpointed=1.0), GPUS["h200"], **ROWS_OF_PACKED)
    assert 0.6 < again.middle / base.middle < 0.85
    other = speed_of(shape, LORA, GPUS["rtx4090"], **ROWS_OF_PACKED)
    assert base.measured
    assert not other.measured
    assert other.low / other.middle < 0.6
    assert other.middle < base.middle / 4, "165 of 989 TFLOPS"
    assert speed_of(shape, LORA, GPUS["t4"], **ROWS_OF_PACKED) is None, "it has no bfloat16"
    assert speed_of(shape, replace(LORA, dtype="fp32"), GPUS["t4"], **ROWS_OF_PACKED) is not None
    short = speed_of(shape, replace(LORA, max_tokens=64), GPUS["h200"], SQUARE, 64)
    assert short.middle < base.middle / 3, "weights are read for each micro-batch"
    two = replace(LORA, world=2, strategy="fsdp", num_trained=8.03e9)
    fast, slow = (speed_of(shape, two, GPUS[gpu], **ROWS_OF_PACKED) for gpu in ("h100", "h100_pcie"))
    assert slow.middle < fast.middle / 2, "PCI Express"
    learned = base.scaled(12000, 0.05, "measured by a run")
    assert (learned.low, learned.high) == (pytest.approx(11400), pytest.approx(12600))
