"""Compare learning from preferences with TRL's DPOTrainer: the loss and the accuracy of each step, on the same tokens.

python -m benchmarks.preferences --model FOLDER --data pairs.jsonl               # dpo, ipo and apo_zero, 20 steps of 2 pairs
python -m benchmarks.preferences --model FOLDER --data pairs.jsonl --losses robust --steps 4 --json preferences.json

Both train all weights in float32 with AdamW, a constant learning rate and the same pairs in the same order. TRL gets the tokens
that the hub makes, so that trainers are compared and not chat templates. It needs TRL (HUB_PEER_TRL names its environment, see
benchmarks/README.md). Exits with 1 if a step's loss differs by more than `--most`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

NAMES = {"dpo": "sigmoid", "robust": "robust", "ipo": "ipo", "hinge": "hinge", "apo_zero": "apo_zero", "apo_down": "apo_down",
         "nca": "nca_pair", "sppo": "sppo_hard", "exo": "exo_pair"}  # fmt: skip
"""The losses that both have, and TRL's names."""

SMOOTHED = ("robust", "exo")
SMOOTHING = 0.1
SEED = 42
OPTIONS = {"learning_rate": 2e-6, "adam_beta1": 0.9, "adam_beta2": 0.95, "max_grad_norm": 1.0}


def tokens(model: Path, rows: Path) -> list[dict[str, list[int]]]:
    """Make the hub's tokens of all pairs, in the order of its first pass. What follows the last trained token is left out."""
    import numpy as np

    import hub
    from hub.data.prepare import prepare
    from hub.data.tokens.tokenizer import load_tokenizer
    from hub.launch.preflight import prepare_data
    from hub.train.batch.split import epoch_order

    cfg = prepare_data(hub.compose("algo=dpo", f"model.path={model}", f"data.path={rows}", "data.format=preference"))
    units = prepare(cfg, load_tokenizer(cfg, model), None).train
    made = []
    for place in epoch_order(len(units), SEED, 0):
        values: dict[str, list[int]] = {}
        for sample in units[place].samples:
            trained = np.flatnonzero(sample.loss_mask)
            values["prompt_ids"] = sample.input_ids[: trained[0]].tolist()
            values[f"{sample.role}_ids"] = sample.input_ids[trained[0] : trained[-1] + 1].tolist()
        made.append(values)
    return made


def ours(model: Path, rows: Path, loss: str, steps: int, batch: int, folder: Path) -> list[dict[str, float]]:
    """Train with the hub, and return the loss and accuracy of each step."""
    import hub

    more = {"label_smoothing": SMOOTHING} if loss in SMOOTHED else {}
    result = hub.run(
        "dpo", model=model, data=rows, loss=loss, beta=0.1, max_steps=steps, effective_batch_size=batch, dtype="float32",
        lr_scheduler="constant", warmup_steps=0, seed=SEED, output_dir=folder, nproc_per_node=1, **OPTIONS, **more,
    )  # fmt: skip
    return [{"loss": line["loss"], "accuracy": line["accuracy"], "margin": line["margin"]} for line in result.metrics]


def theirs(folder: Path) -> None:
    """Train with TRL, in its own process: reads task.json in a folder, and writes steps.json there."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    class OnTheseTokens(DPOTrainer):  # type: ignore[misc]  # TRL has no types
        """TRL's trainer on rows that are tokens already."""

        def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
            return dataset

    task = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    args = DPOConfig(
        output_dir=str(folder / "trl"), loss_type=[NAMES[task["loss"]]], beta=0.1, max_steps=task["steps"], bf16=False,
        per_device_train_batch_size=task["batch"], learning_rate=OPTIONS["learning_rate"], lr_scheduler_type="constant",
        warmup_steps=0, adam_beta1=OPTIONS["adam_beta1"], adam_beta2=OPTIONS["adam_beta2"], weight_decay=0.0,
        max_grad_norm=OPTIONS["max_grad_norm"], logging_steps=1, save_strategy="no", report_to="none", use_cpu=True,
        gradient_checkpointing=False, max_length=None, train_sampling_strategy="sequential",
        label_smoothing=SMOOTHING if task["loss"] in SMOOTHED else 0.0,
    )  # fmt: skip
    load = {"dtype": torch.float32, "attn_implementation": "sdpa"}
    trainer = OnTheseTokens(
        model=AutoModelForCausalLM.from_pretrained(task["model"], **load),
        ref_model=AutoModelForCausalLM.from_pretrained(task["model"], **load),
        args=args,
        train_dataset=Dataset.from_list(task["rows"]),
        processing_class=AutoTokenizer.from_pretrained(task["model"]),
    )
    trainer.train()
    lines = [line for line in trainer.state.log_history if "rewards/margins" in line]
    steps = [{"loss": one["loss"], "accuracy": one["rewards/accuracies"], "margin": one["rewards/margins"]} for one in lines]
    (folder / "steps.json").write_text(json.dumps(steps), encoding="utf-8")


def compare(asked: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Train with both for each loss, and print how far apart they are."""
    from benchmarks.runner import Start

    rows = folder / "rows.jsonl"
    lines = asked.data.read_text(encoding="utf-8").splitlines()
    shortest = sorted(lines[: asked.among], key=len)[: asked.steps * asked.batch]
    rows.write_text("".join(f"{line}\n" for line in shortest), encoding="utf-8")
    made = tokens(asked.model, rows)
    start, found = Start.of("trl"), []
    for loss in asked.losses:
        own = folder / loss
        own.mkdir()
        task = {"model": str(asked.model), "rows": made, "loss": loss, "steps": asked.steps, "batch": asked.batch}
        (own / "task.json").write_text(json.dumps(task), encoding="utf-8")
        subprocess.run(
            [start.python, "-m", "benchmarks.preferences", "--peer", str(own)],
            check=True, env=start.variables, stdout=sys.stderr,
        )  # fmt: skip
        peer = json.loads((own / "steps.json").read_text(encoding="utf-8"))
        hub = ours(asked.model, rows, loss, asked.steps, asked.batch, own / "runs")
        apart = max(abs(one["loss"] - other["loss"]) for one, other in zip(hub, peer, strict=True))
        margin = max(abs(one["margin"] - other["margin"]) for one, other in zip(hub, peer, strict=True))
        # A tie counts half here, and not at all there. There are ties in the first step only, where nothing has moved.
        accuracy = max(abs(one["accuracy"] - other["accuracy"]) for one, other in zip(hub[1:], peer[1:], strict=True))
        print(
            f"{loss}: loss {hub[0]['loss']:.6f} -> {hub[-1]['loss']:.6f}, TRL {peer[0]['loss']:.6f} -> {peer[-1]['loss']:.6f}; "
            f"largest difference of a step: loss {apart:.2e}, margin {margin:.2e}, accuracy from the second on {accuracy:g}",
            flush=True,
        )
        found.append({"loss": loss, "hub": hub, "trl": peer, "apart": apart})
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of the model")
    parser.add_argument("--data", type=Path, help="JSONL file of pairs")
    parser.add_argument("--losses", nargs="+", choices=NAMES, default=["dpo", "ipo", "apo_zero"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=2, help="pairs per step")
    parser.add_argument("--among", type=int, default=400, help="the shortest rows of the first so many are taken")
    parser.add_argument("--most", type=float, default=1e-4, help="allowed difference of a step's loss")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--peer", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.peer:
        theirs(asked.peer)
        return 0
    if asked.model is None or asked.data is None:
        parser.error("--model and --data are needed")
    with tempfile.TemporaryDirectory(prefix="preferences-") as name:
        found = compare(asked, Path(name))
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0 if all(one["apart"] <= asked.most for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
