"""Predicted and measured memory side by side: `python -m benchmarks.plan --out plan.jsonl` on a GPU.

Each row is a real run of six steps with random weights. Its peak (`torch.cuda.max_memory_allocated`), tokens per second and
seconds to the first step are compared with those of `hub plan`, which needs no GPU. Rows that the file has already are left
out, so a command that was cut short goes on where it was.

    python -m benchmarks.plan --out plan.jsonl --minutes 9        # as many rows as nine minutes hold
    python -m benchmarks.plan --out plan.jsonl --only 'lora_8b*'  # rows of that name, or of that pattern
    python -m benchmarks.plan --out plan.jsonl --gpus 2           # those for two GPUs
    python -m benchmarks.plan --out plan.jsonl --table            # the rows so far, no run
    python -m benchmarks.plan --out plan.jsonl --predict          # add what `hub plan` says of them, without a GPU
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

from benchmarks.shapes import POSITIONS, SHAPES, _fill_vocabulary, made_for
from benchmarks.workloads import Lengths, Workload, write_rows
from hub.result import METRICS, read_metrics
from hub.system.cache import cache_dir, make_once
from hub.system.known_gpus import by_driver_name, known_gpus

STEPS = 6
HUB = (sys.executable, "-m", "hub")
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
        from transformers import AutoModelForCausalLM

        config = _config_of(case)
        with torch.device("cuda"):
            AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(aside)
        _write_tokenizer(aside, config.vocab_size)

    return make_once(cache_dir() / "benchmarks" / f"plan-{case.shape}", make)


def config_of(case: Case) -> Path:
    """The folder of the same model without weights, which is enough for a plan."""

    def make(aside: Path) -> None:
        config = _config_of(case)
        config.save_pretrained(aside)
        _write_tokenizer(aside, config.vocab_size)

    return make_once(cache_dir() / "benchmarks" / f"plan-{case.shape}-{case.length}-config", make)


def _config_of(case: Case) -> Any:
    from transformers import AutoConfig

    if case.shape in OTHERS:
        shape = dict(OTHERS[case.shape])
        return AutoConfig.for_model(shape.pop("model_type"), **shape)
    more = {"max_position_embeddings": max(POSITIONS, case.length), "tie_word_embeddings": case.shape != "8b"}
    return AutoConfig.for_model("llama", **SHAPES[case.shape], **more, dtype="bfloat16")


def _write_tokenizer(folder: Path, vocab_size: int) -> None:
    from hub.testing import tokenizer

    tokenizer().save_pretrained(folder)
    _fill_vocabulary(folder / "tokenizer.json", vocab_size)


def words_of(case: Case, model: Path, folder: Path) -> list[str]:
    """The overrides of a case's run. Writes its rows into the folder."""
    workload = Workload(
        algo="sft", shape="1b" if case.shape in OTHERS else case.shape, lengths=Lengths(longest=case.length), batch=case.batch
    )
    rows = folder / "rows.jsonl"
    write_rows(rows, workload, STEPS)
    if case.shape in OTHERS:
        _fit_vocabulary(rows, OTHERS[case.shape]["vocab_size"])
    compiled = "layers" if case.compiled else "none"
    return [
        *case.words, f"model.path={model}", f"data.path={rows}", f"output_dir={folder}", "run_name=run",
        f"algo.max_steps={STEPS}", f"algo.effective_batch_size={case.batch}", f"algo.torch_compile={compiled}",
        f"data.max_seq_len={case.length}", f"launch.nproc_per_node={case.gpus}", "data.eval_fraction=0",
        "plan.learn=false", "algo.log_every_steps=1",
    ]  # fmt: skip


def run(case: Case, folder: Path, measures: bool = False) -> dict[str, Any]:
    """Run a case, and return its row.

    Args:
        case: what is run.
        folder: an empty one.
        measures: whether `hub plan plan.measure=true` is asked first.
    """
    words = words_of(case, model_of(case), folder)
    asked: dict[str, Any] = {}
    begun = time.monotonic()
    if measures:
        asked = _planned([*words, "plan.measure=true"])
        asked["seconds"] = round(time.monotonic() - begun, 1)
        begun = time.monotonic()
    try:
        done = subprocess.run([*HUB, *words], capture_output=True, text=True, check=False, timeout=LIMIT)
        error = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["failed"])[-1]
    except subprocess.TimeoutExpired:
        error = f"more than {LIMIT:.0f} s"
    row: dict[str, Any] = {"name": case.name, "seconds": round(time.monotonic() - begun, 1), "error": error, "asked": asked}
    row["steps"] = [(line["step"], line["tokens_per_second"]) for line in read_metrics(folder / "run" / METRICS)]
    for name in ("result", "plan", "predicted"):
        file = folder / "run" / f"{name}.json"
        row[name] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    return row


def predict(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with what `hub plan` says of it: its time, and its memory if the run ended before it had said that."""
    case = next(case for case in CASES if case.name == row["name"])
    gpu = by_driver_name((row["plan"] or {}).get("device", ""), known_gpus())
    if row["error"] or gpu is None:
        return row
    with tempfile.TemporaryDirectory() as folder:
        said = _planned([*words_of(case, config_of(case), Path(folder)), f"plan.gpu={gpu.name}"])
    if "error" in said:
        return row | {"error": said["error"]}
    return row | {"predicted": row["predicted"] or said["memory"], "said": said}


def _planned(words: list[str]) -> dict[str, Any]:
    """What `hub plan` says, or its error."""
    done = subprocess.run([*HUB, "plan", "--json", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["failed"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _fit_vocabulary(rows: Path, size: int) -> None:
    """Keep token ids below a vocabulary's size."""
    lines = []
    for line in rows.read_text(encoding="utf-8").splitlines():
        ids = [number % size for number in json.loads(line)["input_ids"]]
        lines.append(json.dumps({"input_ids": ids, "labels": ids}))
    rows.write_text("\n".join(lines) + "\n", encoding="utf-8")


HEAD = (
    "run",
    "measured GiB",
    "predicted GiB",
    "error",
    "after plan.measure, GiB",
    "tokens/s",
    "predicted",
    "first step, s",
    "predicted",
)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a table in Markdown, and the errors in a line each. *: the run chose another layout than was predicted."""
    lines = [f"| {' | '.join(HEAD)} |", f"|{' --- |' * len(HEAD)}"]
    errors: dict[str, list[float]] = {"memory": [], "memory after plan.measure": [], "tokens/s": [], "first step": []}
    for row in rows:
        result, predicted, plan = row["result"] or {}, row["predicted"] or {}, row["plan"] or {}
        measured = result.get("peak_memory_gb")
        if row["error"] or not measured or not predicted:
            cells = [row["name"], str(measured or ""), "", row["error"] or "no prediction: see --predict"]
            lines.append(f"| {' | '.join([*cells, *[''] * (len(HEAD) - len(cells))])} |")
            continue
        asked, said = row.get("asked") or {}, row.get("said") or {}
        chosen = (plan.get("max_tokens_per_gpu"), plan.get("layers_recomputed"))
        star = "" if chosen == (predicted["max_tokens"], predicted["num_checkpointed"]) else " *"
        speed = statistics.median([speed for step, speed in row["steps"] if step > 2] or [0])
        first = plan.get("first_step_seconds", 0)

        def beside(kind: str, value: float, truth: float) -> str:
            errors[kind].append(value / truth - 1)
            return f"{errors[kind][-1]:+.1%}"

        peak = predicted["torch_peak_bytes"] / 2**30
        cells = [row["name"], f"{measured:.2f}", f"{peak:.2f}{star}", beside("memory", peak, measured), ""]
        if "memory" in asked:
            corrected = asked["memory"]["torch_peak_bytes"] / 2**30
            cells[-1] = f"{corrected:.2f} ({beside('memory after plan.measure', corrected, measured)})"
        cells += [f"{speed:,.0f}", "", f"{first:.0f}", ""]
        if said:
            cells[6] = f"{said['speed']['middle']:,.0f} ({beside('tokens/s', said['speed']['middle'], speed)})"
            cells[8] = f"{said['first_step_seconds'][1]:.0f} ({beside('first step', said['first_step_seconds'][1], first)})"
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for kind, found in errors.items():
        if found:
            sizes = [abs(error) for error in found]
            lines.append(
                f"{kind}: {len(found)} runs, median error {statistics.median(sizes):.1%}, largest {max(sizes):.1%}, "
                f"furthest below the truth {min(0.0, *found):.1%}"
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
    parser.add_argument(
        "--predict", action="store_true", help="add to the rows so far what `hub plan` says of them; on any machine"
    )
    asked = parser.parse_args()
    begun = time.monotonic()
    rows = [json.loads(line) for line in asked.out.read_text(encoding="utf-8").splitlines()] if asked.out.is_file() else []
    if asked.predict:
        rows = [row if row.get("said") else predict(row) for row in rows]
        asked.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    known = {row["name"] for row in rows if not row["error"]}
    for case in () if asked.table or asked.predict else CASES:
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
