"""Every model preset at its real size with random weights, on one GPU: does it train, how fast, and is its loss right?

    python -m benchmarks families --out families.jsonl --minutes 9           # as many rows as nine minutes hold
    python -m benchmarks families --out families.jsonl --only gemma2_9b      # rows whose name holds that
    python -m benchmarks families --out families.jsonl --only gpt_oss_20b/lora --again --beside unsloth
    python -m benchmarks families --out tiny.jsonl --tiny --only gemma2      # tiny widths: runs anywhere
    python -m benchmarks families --out families.jsonl --table               # the rows so far, no run

A row is a preset with `lora_sft`, `qlora_sft` and, if weights, gradients and moments fit, `sft` and `osft`: six steps of the
same 32 rows, log-normal lengths of 500 tokens on average and at most 2,048. So the first step's loss is that of all rows, and
stands beside what plain transformers says of each row alone. Rows that the file has already are left out, so a command that was
cut short goes on where it was. A model that the GPU or the disk has no room for is cut to its first layers, as its row says.
"""

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.family_shapes import FAMILIES, IN_FOUR_BITS, cut, is_mixture, tiny
from benchmarks.family_table import markdown, row_line
from benchmarks.peers import Task, peers
from benchmarks.runner import Start, run
from benchmarks.table import gpu_name
from benchmarks.workloads import RAGGED, Lengths
from hub.system.known_gpus import by_driver_name, known_gpus

STEPS, ROWS = 6, 32
METHODS = {"lora_sft": "lora", "qlora_sft": "qlora", "sft": "full", "osft": "osft"}
"""Algorithm -> the kind of work, as the contenders name it."""

LIMIT = 240.0
"""Seconds of one run at most."""

STATE_BYTES = {"lora_sft": 2.0, "qlora_sft": 2.0, "sft": 16.0, "osft": 16.0}
"""Bytes of a parameter that a GPU holds: weights, and where all train the gradients and moments, in float32."""

GPU_FRACTION, DISK_FRACTION = 0.85, 0.9
"""Of the memory of the GPU and of the free disk, what weights and state may take."""

OURS, GIB = "ours", 2**30


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What decides which rows are possible."""

    gpu: str | None
    gpu_bytes: float | None
    """None: no GPU, or an unknown one. Then nothing is cut."""

    disk_bytes: float

    @classmethod
    def here(cls, folder: Path) -> "Machine":
        """This machine, with the disk of a folder."""
        name = gpu_name()
        known = by_driver_name(name, known_gpus()) if name else None
        return cls(gpu=name, gpu_bytes=known.memory_bytes if known else None, disk_bytes=shutil.disk_usage(folder).free)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A preset with one algorithm."""

    preset: str
    method: str
    config: dict[str, Any]
    layers: int
    """Layers of the whole model. `config` may have fewer."""

    left_out: str = ""
    """Why there is no run."""

    @property
    def name(self) -> str:
        return f"{self.preset}/{self.method}"


@dataclass(kw_only=True)
class Asked:
    """The arguments of the command line."""

    out: Path
    only: Sequence[str] = ()
    minutes: float = 1e9
    tiny: bool = False
    beside: Sequence[str] = ()
    again: bool = False
    time_limit: float = LIMIT
    folder: Path | None = None
    methods: Sequence[str] = field(default_factory=lambda: tuple(METHODS))


def parameters_of(config: dict[str, Any]) -> int:
    """Count a config's parameters, on a model without data."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = dict(config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values))
    return sum(parameter.numel() for parameter in model.parameters())


def fitted(config: dict[str, Any], room: float, bytes_each: float) -> dict[str, Any]:
    """Return the config with as many of its layers as fit.

    Args:
        config: the whole model.
        room: bytes.
        bytes_each: bytes of a parameter.
    """
    layers = config["num_hidden_layers"]
    few, whole = min(2, layers), parameters_of(config)
    if whole * bytes_each <= room or layers == few:
        return config
    base = parameters_of(cut(config, few))
    each = (whole - base) / (layers - few)
    # An even number: kinds of layers alternate.
    return cut(config, max(few, few + int((room / bytes_each - base) / each) // 2 * 2))


def cases_of(preset: str, asked: Asked, machine: Machine) -> Iterator[Case]:
    """Yield a preset's cases on this machine."""
    config = tiny(FAMILIES[preset]) if asked.tiny else FAMILIES[preset]
    layers, room = config["num_hidden_layers"], DISK_FRACTION * machine.disk_bytes
    if machine.gpu_bytes is not None:
        room = min(room, GPU_FRACTION * machine.gpu_bytes)
    shorter: dict[str, Any] | None = None
    for method in asked.methods:
        if not any(word in f"{preset}/{method}" for word in asked.only or [""]):
            continue
        shorter = shorter or fitted(config, room, STATE_BYTES["lora_sft"])
        case = Case(preset=preset, method=method, config=shorter, layers=layers)
        if machine.gpu_bytes is not None and STATE_BYTES[method] > STATE_BYTES["lora_sft"]:
            needed = STATE_BYTES[method] * parameters_of(config)
            if needed > GPU_FRACTION * machine.gpu_bytes:
                why = f"its state takes {needed / GIB:.0f} GiB, the GPU has {machine.gpu_bytes / GIB:.0f}"
                case = Case(preset=preset, method=method, config=shorter, layers=layers, left_out=why)
        yield case


def write_rows(file: Path, config: dict[str, Any], lengths: Lengths) -> dict[str, float]:
    """Write the rows of all contenders: random tokens, all of them trained on. Returns the mean and largest length."""
    dice, counts = random.Random(0), lengths.draw(ROWS)
    with file.open("w", encoding="utf-8") as stream:
        for count in counts:
            ids = [dice.randrange(3, config["vocab_size"]) for _ in range(count)]
            stream.write(json.dumps({"input_ids": ids, "labels": ids}) + "\n")
    return {"mean": sum(counts) / len(counts), "longest": max(counts)}


def task_of(case: Case, contender: str, model: Path, rows: Path, lengths: Lengths, mean: float) -> Task:
    """Describe a case for one contender."""
    return Task(
        contender=contender, kind=METHODS[case.method], model=str(model), rows=str(rows), steps=STEPS, batch=ROWS,
        longest=lengths.longest, mean=mean, packed=True, micro_rows=4, gpus=1, least_memory=False,
        ours={"torch_compile": "layers"},
    )  # fmt: skip


def plain_loss(model: Path, rows: Path, in_4bit: bool, work: Path) -> tuple[float | None, str]:
    """Ask plain transformers for the loss of the rows. Returns it, or why there is none."""
    out = work / f"plain-{in_4bit}.json"
    if not out.is_file():
        command = [sys.executable, "-m", "benchmarks.family_model", "loss", str(model), str(rows), str(out)]
        done = subprocess.run(
            [*command, *(["4bit"] if in_4bit else [])],
            env=Start.of(OURS).variables,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            return None, _last_line(done.stderr)
    return float(json.loads(out.read_text(encoding="utf-8"))["loss"]), ""


def measured(case: Case, contender: str, task: Task, work: Path, asked: Asked) -> dict[str, Any]:
    """Run a case with one contender, and return its row without the loss of plain transformers."""
    peer, folder = peers()[contender], work / f"{case.method}-{contender}"
    row: dict[str, Any] = {"name": case.name, "contender": contender, "title": peer.title}
    if not Start.of(peer.environment).has(peer.needs):
        return row | {"left_out": "it is not installed"}
    if refusal := peer.refuses(task.kind, 1):
        return row | {"left_out": refusal}
    # A cache of its own: the first run of a kind measures and compiles, whatever this machine has seen.
    variables = {"HUB_CACHE": str(work / f"cache-{case.method}")}
    folder.mkdir()
    found = run(peer, case.name, task, folder, asked.time_limit, variables)
    plan = found.about.get("plan", {})
    row |= {
        "tokens_per_second": found.tokens_per_second,
        "peak_gib": found.peak_gib,
        "first_step_seconds": found.first_step_seconds,
        "loss": found.steps[0].loss if found.steps else None,
        "share_of_peak": _share(folder),
        "failure": found.failure,
        "seconds": found.seconds,
        "versions": found.about.get("versions"),
        "how": found.about.get("how", ""),
        "plan": {key: plan.get(key) for key in PLAN if key in plan},
        "experts": _experts(case, plan) if contender == OURS else "",
    }
    shutil.rmtree(folder, ignore_errors=True)  # a process that was killed may just have written there
    if asked.again and contender == OURS and not found.failure:
        folder = folder.with_name(f"{folder.name}-again")
        folder.mkdir()
        second = run(peer, case.name, task, folder, asked.time_limit, variables)
        row |= {"second_first_step_seconds": second.first_step_seconds, "second_timeline": second.about["plan"].get("timeline")}
        row["second_loss"] = second.steps[0].loss if second.steps else None
        shutil.rmtree(folder, ignore_errors=True)
    return row


PLAN = (
    "packed", "packed_because", "attention", "attention_because", "fused_head", "fused_head_because", "compiled",
    "max_tokens_per_gpu", "max_tokens_per_gpu_because", "layers_recomputed", "activation_offload", "num_layers",
    "trainable_parameters", "parameters", "target_parameters", "load_balancing_loss", "timeline", "first_step_seconds",
)  # fmt: skip
"""Of plan.json, what a row keeps."""


def _share(folder: Path) -> float | None:
    """The fraction of the GPU's peak that the hub itself logged, over the later half of the steps. None: none was logged."""
    file = folder / "run" / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    shares = [share for line in lines if (share := json.loads(line).get("mfu")) is not None]
    return round(statistics.median(shares[len(shares) // 2 :]), 4) if shares else None


def _experts(case: Case, plan: dict[str, Any]) -> str:
    """Whether the experts train. Empty: the model has none, or the run has not come so far."""
    if not is_mixture(case.config) or "trainable_parameters" not in plan:
        return ""
    by_adapters = METHODS[case.method] in ("lora", "qlora")
    return "yes" if not by_adapters or plan.get("target_parameters") else "no"


def rows_of(preset: str, asked: Asked, machine: Machine, known: set[tuple[str, str]], is_over: Any) -> Iterator[dict[str, Any]]:
    """Yield a preset's rows that are not known yet. Its model is made once, and removed afterwards."""
    contenders = (OURS, *asked.beside)
    lengths = Lengths(longest=256, mean=60) if asked.tiny else RAGGED
    left = [(case, c) for case in cases_of(preset, asked, machine) for c in contenders if (case.name, c) not in known]
    with _model(asked.folder) as work:
        mean, model, rows = 0.0, work / "model", work / "rows.jsonl"
        for case, contender in left:
            about = {
                "preset": preset,
                "method": case.method,
                "layers": case.config["num_hidden_layers"],
                "of_layers": case.layers,
            }
            about |= {"gpu": machine.gpu, "date": date.today().isoformat(), "tiny": asked.tiny}
            if case.left_out:
                yield about | {"name": case.name, "contender": contender, "title": contender, "left_out": case.left_out}
                continue
            if is_over():
                return
            if not model.is_dir():
                if failure := _make(case.config, model, work):
                    yield about | {"name": case.name, "contender": contender, "title": contender, "failure": failure}
                    return
                mean = write_rows(rows, case.config, lengths)["mean"]
            row = about | measured(case, contender, task_of(case, contender, model, rows, lengths, mean), work, asked)
            if not row.get("left_out") and contender == OURS:
                plain, why = plain_loss(model, rows, METHODS[case.method] == "qlora", work)
                row |= {"plain_loss": plain, "plain_failure": why}
            yield row


@contextmanager
def _model(folder: Path | None) -> Iterator[Path]:
    """A folder for one preset's model, removed in the end."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="family-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def _make(config: dict[str, Any], model: Path, work: Path) -> str:
    """Make the model in a process of its own, so that the GPU is free afterwards. Returns why it can't be made."""
    file = work / "config.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.family_model", "make", str(file), str(model)]
    model.mkdir()
    done = subprocess.run(command, env=Start.of(OURS).variables, capture_output=True, text=True, check=False)
    return f"the model can't be made: {_last_line(done.stderr)}" if done.returncode else ""


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it left no message"])[-1]


def read(file: Path) -> list[dict[str, Any]]:
    """Read the rows of a file. A last line that was cut off by a kill is removed from it."""
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        file.write_text(whole, encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]


def measure(asked: Asked, machine: Machine) -> list[dict[str, Any]]:
    """Run what is left, and return all rows. Each is written as soon as it is measured."""
    begun, rows = time.monotonic(), read(asked.out)
    known = {(row["name"], row["contender"]) for row in rows if not row.get("failure")}

    def is_over() -> bool:
        return time.monotonic() - begun > 60 * asked.minutes

    for preset in FAMILIES:
        if is_over():
            break
        for row in rows_of(preset, asked, machine, known, is_over):
            rows = [other for other in rows if (other["name"], other["contender"]) != (row["name"], row["contender"])] + [row]
            with asked.out.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
            print(row_line(row, rows), flush=True)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 1 if a row that was measured failed or has another loss."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSONL file with a row for each run")
    parser.add_argument("--only", nargs="+", default=[], help="rows whose name PRESET/ALGORITHM holds one of these")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="the algorithms; default: all")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run after so many minutes")
    parser.add_argument("--tiny", action="store_true", help="tiny widths, two layers: a check that runs anywhere")
    parser.add_argument("--beside", nargs="+", choices=[name for name in peers() if name != OURS], default=[], help="peers")
    parser.add_argument("--again", action="store_true", help="a second run of each, which has measured and compiled before")
    parser.add_argument("--time-limit", type=float, default=LIMIT, help="seconds of one run at most")
    parser.add_argument(
        "--folder", type=Path, help="where models are made, such as /dev/shm; default: the folder for temporary files"
    )
    parser.add_argument("--markdown", type=Path, help="file for the table")
    parser.add_argument("--table", action="store_true", help="print the rows so far, run nothing")
    words = vars(parser.parse_args(argv))
    is_table, file = words.pop("table"), words.pop("markdown")
    asked = Asked(**words)
    place = asked.folder or Path(tempfile.gettempdir())
    rows = latest(read(asked.out)) if is_table else latest(measure(asked, Machine.here(place)))
    text = markdown(rows, [*FAMILIES], IN_FOUR_BITS)
    print(f"\n{text}")
    if file is not None:
        file.write_text(text, encoding="utf-8")
    return int(any(row.get("failure") for row in rows))


def latest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The newest row of each name and contender."""
    return list({(row["name"], row["contender"]): row for row in rows}.values())


if __name__ == "__main__":
    sys.exit(main())
