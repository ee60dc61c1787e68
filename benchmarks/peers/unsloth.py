"""Unsloth: its loader and patches under TRL's SFTTrainer, on one GPU.

`unsloth` has the settings of its notebooks: its own checkpointing, micro-batches of two rows. `unsloth_tuned` has no
checkpointing and micro-batches as large as the others'. In workloads for least memory it has checkpointing and its tiled MLP.
"""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.peers import LORA_ALPHA, LORA_RANK, Peer, Task, step_log

SHIPPED_ROWS = 2
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def refuses(kind: str, gpus: int) -> str | None:
    return "it has no OSFT" if kind == "osft" else "it runs on one GPU only" if gpus > 1 else None


def command(task: Task, folder: Path) -> list[str]:
    return ["-m", "benchmarks.peers.unsloth", str(folder)]


def main(folder: Path) -> None:
    """Train, in the separate process."""
    task = Task.read(folder)
    import unsloth  # first: it patches what trl, peft and transformers import

    # isort: split
    import torch
    from trl import SFTConfig, SFTTrainer

    from benchmarks.peers import trainer

    tuned = task.contender == "unsloth_tuned"
    plain = tuned and not task.least_memory
    tiled = tuned and task.least_memory
    checkpointing: Any = False if plain else "unsloth"
    model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
        task.model,
        max_seq_length=task.longest,
        dtype=torch.bfloat16,
        load_in_4bit=task.kind == "qlora",
        full_finetuning=task.kind == "full",
        use_gradient_checkpointing=checkpointing,
        unsloth_tiled_mlp=tiled,
        local_files_only=True,
    )
    if task.kind != "full":
        model = unsloth.FastLanguageModel.get_peft_model(
            model,
            r=LORA_RANK,
            lora_alpha=LORA_ALPHA,
            lora_dropout=0,
            bias="none",
            target_modules=TARGETS,
            use_gradient_checkpointing=checkpointing,
            random_state=42,
        )
    micro_rows = task.micro_rows if tuned else min(SHIPPED_ROWS, task.micro_rows)
    made = SFTTrainer(
        model=model,
        args=SFTConfig(**trainer.options(task, folder, micro_rows)),
        # Rows with labels would disable its packing.
        train_dataset=trainer.dataset(task, with_labels=not task.packed),
        processing_class=tokenizer,
    )
    words = ["no checkpointing" if plain else "its checkpointing", *(["tiled MLP"] if tiled else [])]
    trainer.train(made, task, folder, trainer.in_words(task, micro_rows, *words))


_peer = partial(
    Peer, needs="unsloth", environment="unsloth", command=command, refuses=refuses, steps=step_log.steps, about=step_log.about
)
CONTENDERS = {"unsloth": _peer(title="Unsloth as shipped"), "unsloth_tuned": _peer(title="Unsloth, tuned")}

if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # all figures are written, and a regular exit takes seconds
