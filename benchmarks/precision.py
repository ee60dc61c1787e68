"""Measure what fp8 costs in quality: losses of LoRA or full fine-tuning on the same data in bfloat16 and in fp8.

python -m benchmarks.precision --model smollm2_135m
python -m benchmarks.precision --algo sft --model smollm2_135m
python -m benchmarks.precision --model FOLDER --data train.jsonl --eval test.jsonl --steps 200 --json precision.json

The baseline is bfloat16 with another seed: other initial adapters, other order of the data. Held-out losses of full fine-tuning
are those of the weights as they are saved, without fp8. Needs a GPU of Hopper's generation or later.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import hub

CHATS = Path(__file__).parents[1] / "examples" / "data" / "chatterbot_en"

VARIANTS: dict[str, dict[str, Any]] = {
    "bfloat16": {},
    "fp8": {"precision": "fp8"},
    "bfloat16, other seed": {"seed": 43},
}


def row(algo: str, variant: str, model: str, data: Path, evaluation: Path, steps: int) -> dict[str, Any]:
    """Return one run's losses: on the held-out set before and after, of the last tenth of the steps, and of each step."""
    result = hub.run(
        algo, model=model, data=data, eval_path=evaluation, max_steps=steps, num_epochs=999, dtype="bfloat16",
        nproc_per_node=1, output_dir="runs/benchmarks", **VARIANTS[variant],
    )  # fmt: skip
    losses = [line["loss"] for line in result.metrics]
    last = losses[-max(1, len(losses) // 10) :]
    return {
        "way": variant,
        "held_out_before": result.eval_loss_before,
        "held_out": result.eval_loss,
        "training": sum(last) / len(last),
        "losses": losses,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algo", choices=("lora_sft", "sft"), default="lora_sft")
    parser.add_argument("--model", default="smollm2_135m", help="a preset or a folder")
    parser.add_argument("--data", type=Path, default=CHATS / "train.jsonl")
    parser.add_argument("--eval", type=Path, default=CHATS / "test.jsonl")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json", type=Path, help="file for the figures, with the loss of each step")
    asked = parser.parse_args()
    rows = [row(asked.algo, variant, asked.model, asked.data, asked.eval, asked.steps) for variant in VARIANTS]
    first = rows[0]["losses"]
    print(f"\n{asked.algo}, {asked.steps} steps\n")
    print("| arithmetic | held-out loss before | after | training loss, last tenth | mean difference of a step's loss |")
    print("| --- | --- | --- | --- | --- |")
    for values in rows:
        apart = sum(abs(a - b) for a, b in zip(values["losses"], first, strict=True)) / len(first)
        print(
            f"| {values['way']} | {values['held_out_before']:.4f} | {values['held_out']:.4f} | {values['training']:.4f} | "
            f"{apart:.4f} |"
        )
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
