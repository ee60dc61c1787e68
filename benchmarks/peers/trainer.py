"""Shared by TRL and Unsloth: both train with TRL's SFTTrainer, in their environments. Import Unsloth before this module."""

import json
from pathlib import Path
from typing import Any

from benchmarks.peers import LEARNING_RATE, Task
from benchmarks.peers.step_log import StepLog


def dataset(task: Task, with_labels: bool) -> Any:
    """Return the rows as a `datasets.Dataset`."""
    from datasets import Dataset

    names = ("input_ids", "labels") if with_labels else ("input_ids",)
    with open(task.rows, encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    return Dataset.from_list([{name: row[name] for name in names} for row in rows])


def options(task: Task, folder: Path, micro_rows: int) -> dict[str, Any]:
    """Return the keywords of `SFTConfig` that are the same for both. Nothing is saved or evaluated.

    If rows are packed, TRL packs them. Otherwise they have one length and are passed unchanged.
    """
    import torch

    cuda = torch.cuda.is_available()
    packed: dict[str, Any] = {"packing": True, "packing_strategy": "bfd"}
    return {
        "output_dir": str(folder / "trainer"),
        "max_steps": task.steps,
        "per_device_train_batch_size": micro_rows,
        "gradient_accumulation_steps": task.accumulation(micro_rows),
        "max_length": task.longest,
        **(packed if task.packed else {"dataset_kwargs": {"skip_prepare_dataset": True}}),
        "learning_rate": LEARNING_RATE[task.kind],
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "optim": "adamw_torch_fused" if cuda else "adamw_torch",
        "bf16": cuda,
        "use_cpu": not cuda,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        "seed": 42,
    }


def train(trainer: Any, task: Task, folder: Path, how: str) -> None:
    """Train, and log the end of each step."""
    from transformers import TrainerCallback

    log = StepLog(folder)
    pad_id = trainer.processing_class.pad_token_id
    plain = trainer.training_step
    counts: list[Any] = []
    losses: list[Any] = []

    def counted(model: Any, inputs: dict[str, Any], *others: Any, **further: Any) -> Any:
        counts.append((inputs["input_ids"] != pad_id).sum())
        losses.append(plain(model, inputs, *others, **further))
        return losses[-1]

    class Watch(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            log.begin(how=how)

        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            # Each micro-batch's loss is already divided by the number of micro-batches.
            log.end(state.global_step, int(sum(counts)), float(sum(losses)))
            counts.clear()
            losses.clear()

    trainer.training_step = counted
    trainer.add_callback(Watch())
    trainer.train()


def in_words(task: Task, micro_rows: int, *others: str) -> str:
    """Describe the settings of a peer, for the table."""
    rows = f"{micro_rows} x {task.longest}{' packed' if task.packed else ''}"
    return ", ".join([rows, *others])
