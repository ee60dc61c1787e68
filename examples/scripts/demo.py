"""`make demo`: fine-tune a small real model by LoRA on a CPU in minutes, and compare it with the base model.

Prints the loss on held-out conversations before and after, and the answers of both models to the same questions. The answers in
the data are short and often humorous. SmolLM2-135M-Instruct's own are long.

    python examples/scripts/demo.py
    python examples/scripts/demo.py --model tiny --max-steps 3    # a quick check with a random model
"""

import argparse
import logging as stdlib_logging
import sys
import textwrap
import warnings
from pathlib import Path

import hub

DATA = Path(__file__).parents[1] / "data" / "chatterbot_en"
PROMPTS = (
    "What is it like to be a robot?",
    "what is economics",
    "how much do you earn",
    "Robots are stupid",
)
"""Questions from the held-out set, which is not trained on."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="smollm2_135m", help="preset, folder or id of the model hub")
    parser.add_argument("--max-steps", type=int, default=30, help="optimizer steps of 16 conversations")
    parser.add_argument("--output-dir", default="runs", help="folder that receives the run folder")
    args = parser.parse_args()

    result = hub.lora_sft(
        model=args.model,
        data=DATA / "train.jsonl",
        eval_path=DATA / "test.jsonl",
        max_steps=args.max_steps,
        effective_batch_size=16,
        learning_rate=1e-3,  # five times the default, which is meant for whole epochs: these are only a few dozen steps
        output_dir=args.output_dir,
    )

    print("\nAnswers to the same questions before and after (greedy decoding):")
    for prompt, untrained, trained in answers(result.base_model_path, result.model_path, PROMPTS):
        print(f"\n  {prompt}\n{indented('before: ', untrained)}\n{indented('after:  ', trained)}")

    before, after = result.eval_loss_before, result.eval_loss
    print(f"\nHeld-out loss: {before:.3f} before, {after:.3f} after {result.num_steps} steps.")
    print(f"Trained in {result.seconds:.0f} s. The adapter is in {result.model_path}")
    print(f"\nNext, with your own chats, one {{'messages': [...]}} per line:\n{next_commands(args.model)}")


def answers(base: Path, adapter: Path, prompts: tuple[str, ...], num_tokens: int = 40) -> list[tuple[str, str, str]]:
    """Return each prompt with the answer of the base model and that of the trained one."""
    # peft imports bitsandbytes if it is installed, which warns about kernels that are not used here.
    stdlib_logging.getLogger("bitsandbytes").setLevel(stdlib_logging.ERROR)

    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module="transformers")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(loaded, adapter).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(adapter)

    def answer(prompt: str) -> str:
        chat = [{"role": "user", "content": prompt}]
        inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        output = model.generate(
            **inputs.to(device), max_new_tokens=num_tokens, do_sample=False, pad_token_id=tokenizer.eos_token_id
        )[0, inputs["input_ids"].shape[1] :]
        cut = " ..." if len(output) == num_tokens else ""
        return " ".join(tokenizer.decode(output, skip_special_tokens=True).split()) + cut

    answered = []
    for prompt in prompts:
        with model.disable_adapter():
            before = answer(prompt)
        answered.append((prompt, before, answer(prompt)))
    return answered


def indented(label: str, text: str) -> str:
    return textwrap.fill(text, 110, initial_indent=f"    {label}", subsequent_indent=" " * (4 + len(label)))


def next_commands(model: str) -> str:
    """Return the commands to type next, with the current interpreter."""
    python = Path(sys.executable)
    shown = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python
    return (
        f"  {shown} -m hub algo=lora_sft model={model} data.path=YOUR.jsonl data.eval_fraction=0.05\n"
        f"  {shown} -m hub          # all algorithms and models"
    )


if __name__ == "__main__":
    main()
