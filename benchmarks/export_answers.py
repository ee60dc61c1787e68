"""Answers of an export beside those of the model in training: does llama.cpp say the same?

    python -m hub algo=lora_sft model=smollm2_135m data.path=train.jsonl algo.max_steps=60 run_name=words
    python -m hub export run=runs/words to=gguf quant=q8_0,q4_k_m
    python -m benchmarks.export_answers runs/words --rows test.jsonl

Greedy answers to the first user turn of each row. "In training" is the adapter on its base by transformers and PEFT.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

from hub.tasks.export.gguf.opened import open_file


def answer(tokenizer: Any, logits: Callable[[Sequence[int]], torch.Tensor], prompt: Sequence[int], most: int) -> str:
    """The greedy answer to a prompt, of at most so many tokens."""
    ids = list(prompt)
    for _ in range(most):
        word = int(logits(ids)[-1].argmax())
        if word == tokenizer.eos_token_id:
            break
        ids.append(word)
    return str(tokenizer.decode(ids[len(prompt) :])).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder of an adapter, with exports/gguf")
    parser.add_argument("--rows", type=Path, required=True, help="JSONL of chats; the second message is the right answer")
    parser.add_argument("--num-rows", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=8, help="of an answer at most")
    asked = parser.parse_args()
    lines = asked.rows.read_text(encoding="utf-8").splitlines()[: asked.num_rows]
    chats = [json.loads(line)["messages"] for line in lines]
    tokenizer: Any = AutoTokenizer.from_pretrained(asked.run / "model")
    model = AutoPeftModelForCausalLM.from_pretrained(asked.run / "model", dtype=torch.float32).eval()
    texts = [tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, tokenize=False) for chat in chats]
    prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]

    @torch.no_grad()
    def in_training(ids: Sequence[int]) -> torch.Tensor:
        found: torch.Tensor = model(input_ids=torch.tensor([list(ids)])).logits[0]
        return found

    trained = [answer(tokenizer, in_training, prompt, asked.tokens) for prompt in prompts]
    print("| read by | prompts with the same token ids | right | same answer as in training |\n| --- | --- | --- | --- |")
    gold = [chat[1]["content"] for chat in chats]

    def show(name: str, same: int, answers: Sequence[str]) -> None:
        right = sum(one == other for one, other in zip(answers, gold, strict=True))
        equal = sum(one == other for one, other in zip(answers, trained, strict=True))
        print(f"| {name} | {same} | {right} | {equal} of {len(chats)} |", flush=True)

    show("transformers, in training", len(chats), trained)
    for file in sorted((asked.run / "exports" / "gguf").glob("*.gguf")):
        with open_file(file, tokenizer) as reader:
            found = [reader.tokens(text) for text in texts]
            same = sum(one == list(other) for one, other in zip(found, prompts, strict=True))
            answers = [
                answer(tokenizer, reader.logits, one or other, asked.tokens) for one, other in zip(found, prompts, strict=True)
            ]
        show(f"llama.cpp, {file.name}", same, answers)


if __name__ == "__main__":
    main()
