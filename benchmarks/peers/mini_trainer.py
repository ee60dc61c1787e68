"""mini_trainer, which training_hub runs for OSFT: full fine-tuning as it comes, through its own `train.py` under torchrun.

It writes its own metrics, with the time of each step. It needs flash-attn 2 and a GPU. (training_hub's LoRA is Unsloth's.)
"""

from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.peers import LEARNING_RATE, Peer, Step, Task, step_log

MAX_TOKENS = 8192
"""Of a micro-batch."""

LAUNCHER = (
    "import sys\n"
    "from pathlib import Path\n"
    "from importlib.util import find_spec\n"
    "from torch.distributed.run import main\n"
    "script = Path(find_spec('mini_trainer').origin).with_name('train.py')\n"
    "main([*sys.argv[1:3], str(script), *sys.argv[3:]])"
)
"""Finds its script in the environment that it runs in."""


def options(model: Path, rows: Path, folder: Path, *, batch: int, steps: int, processes: int = 1) -> list[str]:
    """What comes after the interpreter for a run on rows of tokens; more options may follow.

    Args:
        model: folder of the model.
        rows: JSONL with `input_ids` and `labels`.
        folder: receives its metrics.
        batch: samples of a step.
        steps: to train.
        processes: each with its GPU.
    """
    return [
        "-c", LAUNCHER, "--standalone", f"--nproc-per-node={processes}", f"--model-name-or-path={model}",
        f"--data-path={rows}", f"--batch-size={batch}", f"--max-tokens-per-gpu={MAX_TOKENS}",
        f"--learning-rate={LEARNING_RATE['full']}", f"--output-dir={folder}", "--training-mode=step",
        f"--max-steps={steps}", "--lr-scheduler=constant", "--train-dtype=float32", "--seed=42",
    ]  # fmt: skip


def command(task: Task, folder: Path) -> list[str]:
    # One step more: the last line of its metrics may be lost when it ends.
    return options(Path(task.model), Path(task.rows), folder, batch=task.batch, steps=task.steps + 1, processes=task.gpus)


def refuses(kind: str, gpus: int) -> str | None:
    return None if kind == "full" else "it trains whole models only"


def steps(folder: Path) -> list[Step]:
    """Its metrics, as steps."""
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
    return {"how": f"at most {MAX_TOKENS} tokens, layers recomputed, flash-attn 2, fp32 weights"}


WAYS = {
    "mini_trainer": Peer(
        title="mini_trainer (training_hub)", needs="mini_trainer", environment="mini_trainer",
        command=command, refuses=refuses, steps=steps, about=about,
    )
}  # fmt: skip
