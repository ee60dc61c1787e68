"""The hub, started by `hub.run`."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.peers import LEARNING_RATE, LORA_ALPHA, LORA_RANK, Peer, Task, step_log

ALGORITHMS = {"full": "sft", "lora": "lora_sft", "qlora": "qlora_sft", "osft": "osft"}
PREFERENCES = {"full": "dpo", "lora": "lora_dpo", "qlora": "qlora_dpo"}


def command(task: Task, folder: Path) -> list[str]:
    return ["-m", "benchmarks.peers.ours", str(folder)]


def about(folder: Path) -> dict[str, Any]:
    """Read what the run decided from its plan."""
    file = folder / "run" / "plan.json"
    if not file.is_file():
        return {}
    plan = json.loads(file.read_text(encoding="utf-8"))
    words = [f"at most {plan['max_tokens_per_gpu']} tokens"] if "max_tokens_per_gpu" in plan else []
    if "layers_recomputed" in plan:
        words.append(f"{plan['layers_recomputed']} of {plan['num_layers']} layers checkpointed")
    words += [word for word, key in (("compiled", "compiled"), ("fused head", "fused_head")) if plan.get(key)]
    words += [str(plan[key]) for key in ("attention", "strategy") if key in plan]
    return step_log.about(folder) | {"how": ", ".join(words), "plan": plan}


def main(folder: Path) -> None:
    """Train, in the separate process."""
    import hub
    from benchmarks.plugin import as_plugin
    from hub.system.gpus import num_visible_gpus

    task = Task.read(folder)
    os.environ.update(as_plugin(folder, "benchmarks.step_probe"))
    if not num_visible_gpus():
        task.ours.pop("torch_compile", None)
    adapters = {} if task.kind in ("full", "osft") else {"lora_r": LORA_RANK, "lora_alpha": LORA_ALPHA}
    options = {
        "learning_rate": LEARNING_RATE[task.kind], "lr_scheduler": "constant", "warmup_steps": 0, "max_steps": task.steps,
        "num_epochs": 99, "effective_batch_size": task.batch, "nproc_per_node": task.gpus, "max_seq_len": task.longest,
        "output_dir": folder, "run_name": "run",
    }  # fmt: skip
    algorithm = ALGORITHMS[task.kind]
    if task.pairs:
        algorithm, options["format"] = PREFERENCES[task.kind], "token_pair"
    hub.run(algorithm, model=task.model, data=task.rows, **options, **adapters, **task.ours)


CONTENDERS = {
    "ours": Peer(
        title="the hub", needs="hub", environment="ours",
        command=command, refuses=lambda kind, gpus: None, steps=step_log.steps, about=about,
    )
}  # fmt: skip

if __name__ == "__main__":
    main(Path(sys.argv[1]))
