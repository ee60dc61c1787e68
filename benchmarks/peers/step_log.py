"""The log of steps: end, tokens and memory of each. The training process writes it, in any environment. The parent reads it."""

import json
import os
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.peers import Step

PACKAGES = (
    "torch", "transformers", "accelerate", "peft", "trl", "unsloth", "unsloth_zoo", "liger-kernel", "flash-attn",
    "bitsandbytes", "xformers", "torchao", "rhai-innovation-mini-trainer", "finetune-hub",
)  # fmt: skip


class StepLog:
    """Writes `steps-<rank>.jsonl` into a folder: a line on the settings and versions, then one for each step."""

    def __init__(self, folder: Path) -> None:
        import torch

        self._cuda: Any = torch.cuda if torch.cuda.is_available() else None
        self._file = folder / f"steps-{os.environ.get('RANK', '0')}.jsonl"

    def begin(self, **about: Any) -> None:
        """Mark the start of training. Memory used for loading does not count."""
        gpu = None
        if self._cuda:
            self._cuda.reset_peak_memory_stats()
            total = self._cuda.get_device_properties(self._cuda.current_device()).total_memory
            gpu = {"name": self._cuda.get_device_name(), "total_bytes": total}
        self._write({"about": about | {"versions": versions(), "gpu": gpu}})

    def end(self, step: int, tokens: int, loss: float | None = None) -> None:
        """Record the end of a step on this process, after waiting for its GPU."""
        peak = reserved = None
        if self._cuda:
            self._cuda.synchronize()
            peak, reserved = self._cuda.max_memory_allocated(), self._cuda.max_memory_reserved()
        line = {"step": step, "time": time.time(), "tokens": tokens, "loss": loss, "peak_bytes": peak}
        self._write(line | {"reserved_bytes": reserved})

    def _write(self, line: dict[str, Any]) -> None:
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


def versions() -> dict[str, str]:
    """Return the versions of the installed packages that matter for speed."""
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed


def about(folder: Path) -> dict[str, Any]:
    """Read the settings and versions of the first process."""
    return next((line["about"] for line in lines(folder / "steps-0.jsonl") if "about" in line), {})


def steps(folder: Path) -> list[Step]:
    """Read the steps that all processes have completed. Tokens are summed over processes, times are those of the first."""
    ranks = [[line for line in lines(file) if "step" in line] for file in sorted(folder.glob("steps-*.jsonl"))]
    completed = []
    for same in zip(*ranks, strict=False):
        peaks = [line["peak_bytes"] for line in same if line["peak_bytes"] is not None]
        first = same[0]
        completed.append(
            Step(
                number=first["step"],
                time=first["time"],
                tokens=sum(line["tokens"] for line in same),
                loss=first["loss"],
                peak_bytes=max(peaks, default=None),
            )
        )
    return completed


def lines(file: Path) -> list[dict[str, Any]]:
    """Read the complete lines. The last one may be partial: the process may be writing it, or was killed."""
    if not file.is_file():
        return []
    text = file.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
