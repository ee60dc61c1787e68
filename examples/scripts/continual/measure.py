"""Measures a model: accuracy on all tasks, and the loss on text that no method trained on."""

import statistics
from typing import Any

from continual.study import DOCUMENT_TOKENS, Study, rows_of

TOGETHER = 400
"""Number of prompts per batch of generation."""


def load(model: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    cuda = torch.cuda.is_available()
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16 if cuda else torch.float32)
    return network.to("cuda" if cuda else "cpu").eval()


def text_loss(study: Study, tokenizer: Any, network: Any) -> float:
    """Return the mean loss per token on the beginnings of documents, in nats."""
    import torch

    losses = []
    limit = min(DOCUMENT_TOKENS, network.config.max_position_embeddings)
    for row in rows_of(study.text[1])[: study.test_rows]:
        ids = torch.tensor([tokenizer(row["text"], add_special_tokens=False)["input_ids"][:limit]], device=network.device)
        with torch.inference_mode():
            logits = network(input_ids=ids, use_cache=False).logits[0, :-1].float()
        losses.append(float(torch.nn.functional.cross_entropy(logits, ids[0, 1:])))
    return statistics.mean(losses)


def accuracies(study: Study, tokenizer: Any, network: Any) -> tuple[list[float], list[float]]:
    """Return for each task the fraction of answers that are right, and of those that contain the right one."""
    asked = [(task, row) for task in study.tasks for row in study.read(task, test=True)]
    prompts = [tokenizer.apply_chat_template(row[:-1], add_generation_prompt=True, tokenize=False) for _, row in asked]
    right = [row[-1]["content"].strip() for _, row in asked]
    order = sorted(range(len(asked)), key=lambda number: len(prompts[number]))
    answers: dict[int, str] = {}
    for start in range(0, len(order), TOGETHER):
        numbers = order[start : start + TOGETHER]
        inputs = tokenizer(
            [prompts[n] for n in numbers], return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
        ).to(network.device)
        longest = max(len(tokenizer(right[n])["input_ids"]) for n in numbers)
        output = network.generate(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=max(16, longest + 4),
            do_sample=False, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        answers |= {n: text.strip() for n, text in zip(numbers, texts, strict=True)}
    strict, containing = [], []
    for task in study.tasks:
        mine = [n for n, (name, _) in enumerate(asked) if name == task]
        strict.append(statistics.mean(answers[n] == right[n] for n in mine))
        containing.append(statistics.mean(right[n] in answers[n] for n in mine))
    return strict, containing
