"""When each step ended, how many tokens it had and what memory it took: written in whatever environment trains, read here."""

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
    """Writes `steps-<rank>.jsonl` into a folder: first what is trained how, then a line for each step."""

    def __init__(self, folder: Path) -> None:
        import torch

        self._cuda: Any = torch.cuda if torch.cuda.is_available() else None
        self._file = folder / f"steps-{os.environ.get('RANK', '0')}.jsonl"

    def begin(self, **about: Any) -> None:
        """Training is about to begin: what loading took does not count."""
        gpu = None
        if self._cuda:
            self._cuda.reset_peak_memory_stats()
            total = self._cuda.get_device_properties(self._cuda.current_device()).total_memory
            gpu = {"name": self._cuda.get_device_name(), "total_bytes": total}
        self._write({"about": about | {"versions": versions(), "gpu": gpu}})

    def end(self, step: int, tokens: int, loss: float | None = None) -> None:
        """A step is over on this process, once its GPU is done."""
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
    """Of the installed packages that matter for speed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def about(folder: Path) -> dict[str, Any]:
    """What the first process said of itself."""
    return next((line["about"] for line in lines(folder / "steps-0.jsonl") if "about" in line), {})


def steps(folder: Path) -> list[Step]:
    """The steps that all processes have ended: tokens are summed over them, times are the first one's."""
    ranks = [[line for line in lines(file) if "step" in line] for file in sorted(folder.glob("steps-*.jsonl"))]
    found = []
    for same in zip(*ranks, strict=False):
        peaks = [line["peak_bytes"] for line in same if line["peak_bytes"] is not None]
        first = same[0]
        found.append(
            Step(
                number=first["step"],
                time=first["time"],
                tokens=sum(line["tokens"] for line in same),
                loss=first["loss"],
                peak_bytes=max(peaks, default=None),
            )
        )
    return found


def lines(file: Path) -> list[dict[str, Any]]:
    """Whole lines only: the writer may be at work, or was killed."""
    if not file.is_file():
        return []
    text = file.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
