"""The table of `python -m benchmarks`, and the figures of the GPU that it needs."""

import shutil
import subprocess
from typing import Any

from benchmarks.runner import Row
from benchmarks.shapes import num_multiplied
from benchmarks.workloads import WORKLOADS
from hub.system.known_gpus import by_driver_name, known_gpus

HEAD = ("workload", "contender", "tokens/s", "ratio", "peak GiB", "of peak", "first step, s", "how")
CONVENTION = (
    "tokens/s: without padding, the median over the later half of the steps. ratio: to the fastest peer on the same workload. "
    "peak GiB: allocated by torch, of one GPU. of peak: 4N operations per token for LoRA and QLoRA, 6N for full "
    "fine-tuning (N: weights without the embedding, with the output layer; attention and recomputation are not counted), over "
    "the GPUs' dense bfloat16 peak. first step: seconds from the start of the process to the end of its first step."
)


def gpu_name() -> str | None:
    """Return the name of the first GPU. None: there is no GPU."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout.strip() else None


def peak_flops(gpu: str | None) -> float | None:
    """Return the peak of dense bfloat16 operations per second. None: unknown GPU."""
    found = by_driver_name(gpu, known_gpus()) if gpu else None
    return found.peak.get("bf16") if found else None


def bandwidth_of(gpu: str) -> float:
    """Return the bandwidth of a known GPU's memory in bytes per second."""
    found = by_driver_name(gpu, known_gpus())
    assert found is not None
    return found.bandwidth


def share_of_peak(row: Row, shape: str, gpu: str | None, gpus: int) -> float | None:
    """Return the fraction of the GPUs' peak. None: unknown GPU, no figure, or rows so long that attention dominates."""
    workload = WORKLOADS[row.workload]
    peak = peak_flops(gpu)
    if row.tokens_per_second is None or peak is None or workload.search:
        return None
    return row.tokens_per_second * workload.flops * num_multiplied(shape) / (peak * gpus)


def ratio(row: Row, rows: list[Row]) -> float | None:
    """Return the ratio to the best peer on the same workload, or on the one that it is compared with."""
    workload = WORKLOADS[row.workload]
    baselines = {row.workload, workload.compared_with}
    peers = [figure(other) for other in rows if other.workload in baselines and other.contender != "ours" and figure(other)]
    mine = figure(row)
    return mine / max(peers) if mine and peers else None


def figure(row: Row) -> float:
    """Return the figure to compare: the longest row that fits, or tokens/s. 0: there is none."""
    return float((row.longest if WORKLOADS[row.workload].search else row.tokens_per_second) or 0)


def cells(row: Row, shape: str, gpu: str | None, gpus: int, rows: list[Row] | None = None) -> list[str]:
    """Format a row. Without the other rows it has no ratio."""
    share, to_best = share_of_peak(row, shape, gpu, gpus), ratio(row, rows) if rows else None
    how = [f"**{row.longest:,} tokens**"] if row.longest else []
    how += [row.about.get("how", ""), row.failure]
    return [
        row.workload,
        row.title,
        f"{row.tokens_per_second:,.0f}" if row.tokens_per_second else "",
        f"{to_best:.2f}" if to_best else "",
        f"{row.peak_gib:.1f}" if row.peak_gib else "",
        f"{share:.1%}" if share else "",
        f"{row.first_step_seconds:.0f}" if row.first_step_seconds else "",
        "; ".join(filter(None, how)),
    ]


def line(words: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(words)} |"


def markdown(lines: list[list[str]], machine: dict[str, Any], versions: dict[str, dict[str, str]]) -> str:
    """Return the whole table with the machine, the versions, and the command that repeats it."""
    notes = [f"{machine['gpus']} x {machine['gpu'] or 'CPU'}, {machine['date']}: `{machine['command']}`"]
    for title, packages in versions.items():
        notes.append(f"{title}: {', '.join(f'{name} {number}' for name, number in packages.items())}")
    return "\n".join([line(HEAD), line(["---"] * len(HEAD)), *map(line, lines), "", CONVENTION, "", *notes]) + "\n"
