"""LoRA: small adapters are trained beside the frozen weights.

Saves an adapter that peft loads onto its base model.

    python examples/scripts/lora_sft.py --quick
    python examples/scripts/lora_sft.py --model llama3_8b --data chats.jsonl
"""

import argparse
from pathlib import Path

import hub

DATA = Path(__file__).parents[1] / "data" / "chatterbot_en" / "train.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="smollm2_135m", help="preset, folder or id of the model hub")
    parser.add_argument("--data", default=str(DATA), help="conversations: JSONL, JSON, CSV or parquet")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--lora-r", type=int, default=16, help="rank of the adapters")
    parser.add_argument("--quick", action="store_true", help="only three small steps, as a quick check")
    parser.add_argument("--output-dir", default="runs", help="folder that receives the run folder")
    args = parser.parse_args()
    quick = {"max_steps": 3, "effective_batch_size": 8} if args.quick else {}

    result = hub.lora_sft(
        model=args.model,
        data=args.data,
        eval_fraction=0.05,
        learning_rate=args.learning_rate,
        lora_r=args.lora_r,
        output_dir=args.output_dir,
        **quick,
    )

    print(f"held-out loss {result.eval_loss_before:.4f} -> {result.eval_loss:.4f} after {result.num_steps} steps")
    print(f"load it: peft.AutoPeftModelForCausalLM.from_pretrained('{result.model_path}')")


if __name__ == "__main__":
    main()
