"""Predicted and measured memory side by side: `python -m benchmarks.plan --out plan.jsonl` on a GPU.

Each row is a real run of six steps with random weights. Its peak (`torch.cuda.max_memory_allocated`) stands beside what the
run itself predicted (`hub plan`, in a process without a GPU). Rows that the file has already are left out, so a command that
was cut short goes on where it was.

    python -m benchmarks.plan --out plan.jsonl --minutes 9        # as many rows as nine minutes hold
    python -m benchmarks.plan --out plan.jsonl --only 'lora_8b*'  # rows of that name, or of that pattern
    python -m benchmarks.plan --out plan.jsonl --gpus 2           # those for two GPUs
    python -m benchmarks.plan --out plan.jsonl --table            # the rows so far, no run
    python -m benchmarks.plan --out plan.jsonl --measure          # each row also with what plan.measure=true says before it
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from benchmarks.shapes import _fill_vocabulary, made_for
from benchmarks.workloads import Lengths, Workload, write_rows
from hub.result import METRICS, read_metrics
from hub.system.cache import cache_dir, make_once

STEPS = 6
LIMIT = 240.0
"""Seconds of one run at most."""

OTHERS: dict[str, dict[str, Any]] = {
    "qwen3_0.6b": {
        "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True,
        "max_position_embeddings": 40960,
    },
    "gemma2_2b": {
        "model_type": "gemma2", "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 256000, "sliding_window": 4096,
        "query_pre_attn_scalar": 256, "max_position_embeddings": 8192,
    },
    "mixtral_1b": {
        "model_type": "mixtral", "hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 16,
        "num_attention_heads": 16, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2,
        "vocab_size": 32000, "max_position_embeddings": 32768, "tie_word_embeddings": False,
    },
}  # fmt: skip
"""Shapes of Qwen3 0.6B and Gemma 2 2B, and of a small mixture of experts."""

NONE, ALL = "algo.gradient_checkpointing=none", "algo.gradient_checkpointing=all"
OFFLOAD = (ALL, "algo.activation_offload=all")
LORA, QLORA, FULL = ("algo=lora_sft",), ("algo=qlora_sft",), ("algo=sft",)
BF16 = ("algo=sft", "algo.master_weights=false")
OSFT = ("algo=osft", "algo.subspace=weights")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run."""

    name: str
    shape: str
    words: tuple[str, ...]
    length: int = 2048
    """Tokens of each sample."""

    batch: int = 8
    gpus: int = 1
    compiled: bool = True


def _case(name: str, shape: str, algo: tuple[str, ...], *words: str, tokens: int | None = 8192, **more: Any) -> Case:
    bound = () if tokens is None else (f"algo.max_tokens_per_gpu={tokens}",)
    return Case(name=name, shape=shape, words=(*algo, *bound, *words), **more)


CASES = (
    _case("lora_1b_none_2k", "1b", LORA, NONE, tokens=2048),
    _case("lora_1b_none_8k", "1b", LORA, NONE),
    _case("lora_1b_all_8k", "1b", LORA, ALL),
    _case("lora_1b_all_32k", "1b", LORA, ALL, tokens=32768, length=32768, batch=2),
    _case("lora_1b_offload_32k", "1b", LORA, *OFFLOAD, tokens=32768, length=32768, batch=2),
    _case("lora_1b_eager_8k", "1b", LORA, NONE, compiled=False),
    _case("full_1b_none_8k", "1b", FULL, NONE),
    _case("full_1b_all_8k", "1b", FULL, ALL),
    _case("full_1b_one_micro_batch", "1b", FULL, NONE, batch=4),
    _case("full_1b_eager_8k", "1b", FULL, NONE, compiled=False),
    _case("bf16_1b_none_8k", "1b", BF16, NONE),
    _case("bf16_1b_all_32k", "1b", BF16, ALL, tokens=32768, length=32768, batch=2),
    _case("adamw8bit_1b_none_8k", "1b", FULL, NONE, "algo.optimizer=adamw_8bit"),
    _case("osft_1b_none_8k", "1b", OSFT, NONE),
    _case("osft_1b_all_8k", "1b", OSFT, ALL),
    _case("qlora_1b_none_8k", "1b", QLORA, NONE),
    _case("lora_qwen3_0.6b_none_8k", "qwen3_0.6b", LORA, NONE),
    _case("full_qwen3_0.6b_all_8k", "qwen3_0.6b", FULL, ALL),
    _case("lora_gemma2_2b_all_2k", "gemma2_2b", LORA, ALL, tokens=2048),
    _case("full_gemma2_2b_all_2k", "gemma2_2b", BF16, ALL, tokens=2048),
    _case("lora_mixtral_1b_none_8k", "mixtral_1b", LORA, NONE),
    _case("full_mixtral_1b_none_2k", "mixtral_1b", FULL, NONE, tokens=2048),
    _case("lora_8b_auto", "8b", LORA, tokens=None, batch=16),
    _case("lora_8b_none_8k", "8b", LORA, NONE),
    _case("lora_8b_offload_2k", "8b", LORA, *OFFLOAD, tokens=2048, batch=2),
    _case("qlora_8b_none_8k", "8b", QLORA, NONE),
    _case("qlora_8b_all_32k", "8b", QLORA, ALL, tokens=32768, length=32768, batch=2),
    _case("qlora_8b_offload_2k", "8b", QLORA, *OFFLOAD, tokens=2048, batch=2),
    _case("bf16_8b_all_2k", "8b", BF16, ALL, tokens=2048),
    _case("full_1b_ddp", "1b", FULL, NONE, "launch.strategy=ddp", gpus=2, batch=16),
    _case("full_1b_fsdp", "1b", FULL, NONE, "launch.strategy=fsdp", gpus=2, batch=16),
    _case("full_8b_fsdp", "8b", FULL, "launch.strategy=fsdp", tokens=None, gpus=2, batch=32),
)


def model_of(case: Case) -> Path:
    """The folder of a case's model, with random weights."""
    if case.shape not in OTHERS:
        return made_for(case.shape, case.length)

    def make(aside: Path) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        from hub.testing import tokenizer

        shape = dict(OTHERS[case.shape])
        config = AutoConfig.for_model(shape.pop("model_type"), **shape)
        with torch.device("cuda"):
            AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(aside)
        tokenizer().save_pretrained(aside)
        _fill_vocabulary(aside / "tokenizer.json", config.vocab_size)

    return make_once(cache_dir() / "benchmarks" / f"plan-{case.shape}", make)


def run(case: Case, folder: Path, measures: bool = False) -> dict[str, Any]:
    """Run a case, and return its row.

    Args:
        case: what is run.
        folder: an empty one.
        measures: whether `hub plan plan.measure=true` is asked first.
    """
    workload = Workload(
        algo="sft", shape="1b" if case.shape in OTHERS else case.shape, lengths=Lengths(longest=case.length), batch=case.batch
    )
    rows = folder / "rows.jsonl"
    write_rows(rows, workload, STEPS)
    if case.shape in OTHERS:
        _fit_vocabulary(rows, OTHERS[case.shape]["vocab_size"])
    compiled = "layers" if case.compiled else "none"
    words = [
        *case.words, f"model.path={model_of(case)}", f"data.path={rows}", f"output_dir={folder}", "run_name=run",
        f"algo.max_steps={STEPS}", f"algo.effective_batch_size={case.batch}", f"algo.torch_compile={compiled}",
        f"data.max_seq_len={case.length}", f"launch.nproc_per_node={case.gpus}", "data.eval_fraction=0",
        "plan.learn=false", "algo.log_every_steps=1",
    ]  # fmt: skip
    command = [sys.executable, "-m", "hub", *words]
    asked: dict[str, Any] = {}
    begun = time.monotonic()
    if measures:
        plan = subprocess.run([*command[:3], "plan", *words, "plan.measure=true", "--json"], capture_output=True, text=True)
        asked = json.loads(plan.stdout) if plan.stdout.startswith("{") else {"error": plan.stderr.strip().splitlines()[-1:]}
        asked["seconds"] = round(time.monotonic() - begun, 1)
        begun = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT)
        error = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["failed"])[-1]
    except subprocess.TimeoutExpired:
        error = f"more than {LIMIT:.0f} s"
    row: dict[str, Any] = {"name": case.name, "seconds": round(time.monotonic() - begun, 1), "error": error, "asked": asked}
    row["steps"] = [(line["step"], line["tokens_per_second"]) for line in read_metrics(folder / "run" / METRICS)]
    for name in ("result", "plan", "predicted"):
        file = folder / "run" / f"{name}.json"
        row[name] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    if not row["predicted"] and not error:
        row["predicted"] = _planned([*command[:3], "plan", "--json", *command[3:], "plan.learn=false"])
    return row


def _planned(command: list[str]) -> dict[str, Any] | None:
    """What `hub plan` says of the memory: a short run ends before its own prediction does."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found: dict[str, Any] | None = json.loads(done.stdout)["memory"] if done.returncode == 0 else None
    return found


def _fit_vocabulary(rows: Path, size: int) -> None:
    """Keep token ids below a vocabulary's size."""
    lines = []
    for line in rows.read_text(encoding="utf-8").splitlines():
        ids = [number % size for number in json.loads(line)["input_ids"]]
        lines.append(json.dumps({"input_ids": ids, "labels": ids}))
    rows.write_text("\n".join(lines) + "\n", encoding="utf-8")


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a table in Markdown, and the errors in one line. *: the run chose another layout than was predicted."""
    head = (
        "run",
        "measured GiB",
        "predicted GiB",
        "error",
        "after plan.measure, GiB",
        "tokens/s",
        "then",
        "first step, s",
        "then",
    )
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    errors = []
    for row in rows:
        result, predicted = row["result"] or {}, row["predicted"] or {}
        measured = result.get("peak_memory_gb")
        if row["error"] or not measured or not predicted:
            cells = [row["name"], str(measured or ""), "", row["error"] or "no prediction"]
            lines.append(f"| {' | '.join([*cells, *[''] * (len(head) - len(cells))])} |")
            continue
        peak = predicted["torch_peak_bytes"] / 2**30
        errors.append(peak / measured - 1)
        plan, asked = row["plan"] or {}, row.get("asked") or {}
        chosen = (plan.get("max_tokens_per_gpu"), plan.get("layers_recomputed"))
        star = "" if chosen == (predicted["max_tokens"], predicted["num_checkpointed"]) else " *"
        cells = [row["name"], f"{measured:.2f}", f"{peak:.2f}{star}", f"{errors[-1]:+.1%}"]
        if "memory" in asked:
            corrected, speeds = asked["memory"]["torch_peak_bytes"] / 2**30, [speed for step, speed in row["steps"] if step > 2]
            cells += [f"{corrected:.2f} ({corrected / measured - 1:+.1%})", f"{statistics.median(speeds or [0]):,.0f}"]
            cells += [f"{asked['speed']['middle']:,.0f}", f"{plan.get('first_step_seconds', 0):.0f}"]
            cells += [f"{asked['first_step_seconds'][1]:.0f}"]
        lines.append(f"| {' | '.join([*cells, *[''] * (len(head) - len(cells))])} |")
    if errors:
        sizes = [abs(error) for error in errors]
        lines.append(
            f"\n{len(errors)} runs: median error {statistics.median(sizes):.1%}, largest {max(sizes):.1%}, "
            f"furthest below the truth {min(0.0, *errors):.1%}"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the cases that are left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSONL file with a row for each run")
    parser.add_argument("--only", nargs="+", default=["*"], help="run the cases of these names or patterns, such as 'lora_8b*'")
    parser.add_argument("--gpus", type=int, default=1, help="run the cases for so many GPUs")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run after so many minutes")
    parser.add_argument("--measure", action="store_true", help="ask `hub plan plan.measure=true` before each run")
    parser.add_argument("--table", action="store_true", help="print the rows so far, run nothing")
    asked = parser.parse_args()
    begun = time.monotonic()
    rows = [json.loads(line) for line in asked.out.read_text(encoding="utf-8").splitlines()] if asked.out.is_file() else []
    known = {row["name"] for row in rows if not row["error"]}
    for case in () if asked.table else CASES:
        named = any(fnmatch(case.name, pattern) for pattern in asked.only)
        if case.name in known or not named or case.gpus != asked.gpus:
            continue
        if time.monotonic() - begun > 60 * asked.minutes:
            break
        with tempfile.TemporaryDirectory() as folder:
            row = run(case, Path(folder), asked.measure)
        rows.append(row)
        with asked.out.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        print(table([row]).splitlines()[2], f"{row['seconds']:.0f} s", flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
