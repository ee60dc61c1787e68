"""mini_trainer, which training_hub runs for OSFT: full fine-tuning with its defaults, by its own `train.py` under torchrun.

It writes its own metrics, with the time of each step. It needs flash-attn 2 and a GPU. (training_hub's LoRA is Unsloth's.)
"""

from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.peers import LEARNING_RATE, Peer, Step, Task, step_log

MAX_TOKENS = 8192
"""Bound of tokens in a micro-batch."""

LAUNCHER = (
    "import sys\n"
    "from pathlib import Path\n"
    "from importlib.util import find_spec\n"
    "from torch.distributed.run import main\n"
    "script = Path(find_spec('mini_trainer').origin).with_name('train.py')\n"
    "main([*sys.argv[1:3], str(script), *sys.argv[3:]])"
)
"""Runs the script of the mini_trainer in the current environment."""


def options(model: Path, rows: Path, folder: Path, *, batch: int, steps: int, processes: int = 1) -> list[str]:
    """Return the arguments of the interpreter for a run on rows of tokens. More options may be appended.

    Args:
        model: folder of the model.
        rows: JSONL with `input_ids` and `labels`.
        folder: folder for its metrics.
        batch: samples per step.
        steps: number of steps.
        processes: number of processes, one per GPU.
    """
    return [
        "-c", LAUNCHER, "--standalone", f"--nproc-per-node={processes}", f"--model-name-or-path={model}",
        f"--data-path={rows}", f"--batch-size={batch}", f"--max-tokens-per-gpu={MAX_TOKENS}",
        f"--learning-rate={LEARNING_RATE['full']}", f"--output-dir={folder}", "--training-mode=step",
        f"--max-steps={steps}", "--lr-scheduler=constant", "--train-dtype=float32", "--seed=42",
    ]  # fmt: skip


def command(task: Task, folder: Path) -> list[str]:
    # One more step: the last line of its metrics may be lost when it is killed.
    return options(Path(task.model), Path(task.rows), folder, batch=task.batch, steps=task.steps + 1, processes=task.gpus)


def refuses(kind: str, gpus: int) -> str | None:
    return None if kind == "full" else "it supports full fine-tuning only"


def steps(folder: Path) -> list[Step]:
    """Read the steps from its metrics."""
    return [
        Step(
            number=line["step"],
            time=datetime.fromisoformat(line["timestamp"]).timestamp(),
            tokens=int(line["num_total_tokens"]),
            loss=line["loss"],
            peak_bytes=int(line["peak_memory_usage_GB"] * 1e9),
        )
        for line in step_log.lines(folder / "training_metrics_0.jsonl")
        if "time_per_batch" in line
    ]


def about(folder: Path) -> dict[str, Any]:
    return {"how": f"at most {MAX_TOKENS} tokens, all layers checkpointed, flash-attn 2, fp32 weights"}


CONTENDERS = {
    "mini_trainer": Peer(
        title="mini_trainer (training_hub)", needs="mini_trainer", environment="mini_trainer",
        command=command, refuses=refuses, steps=steps, about=about,
    )
}  # fmt: skip
