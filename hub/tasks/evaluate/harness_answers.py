"""Answers for tasks of lm-eval, as its own hf model generates them: greedy, ended by the config's tokens and stop texts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteriaList

from hub.config.generate import GenerateConfig
from hub.config.option import AUTO
from hub.errors import ModelError
from hub.tasks.generate.answer_shape import AnswerShape
from hub.tasks.generate.engine import Done
from hub.tasks.loading import Loaded

BATCH = 32
"""Answers that are generated together, if nothing else is asked for."""


@dataclass(frozen=True)
class Answer:
    """One generated answer."""

    text: str


@torch.no_grad()
def answers(
    loaded: Loaded, prompts: Sequence[Sequence[int]], generate: GenerateConfig, progress: Callable[[int], None]
) -> list[Answer]:
    """Generate the most likely answer to each prompt.

    Args:
        loaded: the model.
        prompts: token ids of each.
        generate: `max_new_tokens`, `stop` and `batch_size` are read.
        progress: called with the number of new answers, after each batch.

    Returns:
        An answer for each prompt, in order.

    Raises:
        ModelError: memory runs out with a single prompt.
    """
    found: list[Answer | None] = [None] * len(prompts)
    pending = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    size = BATCH if generate.batch_size == AUTO else int(generate.batch_size)
    while pending:
        chosen = pending[:size]
        try:
            texts = _batch(loaded, [prompts[i] for i in chosen], generate)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            if size == 1:
                raise ModelError("out of memory with a single prompt. Type a smaller evaluate.max_new_tokens") from None
            size //= 2
            continue
        for i, text in zip(chosen, texts, strict=True):
            found[i] = Answer(text)
        pending = pending[size:]
        progress(len(chosen))
    return [answer for answer in found if answer is not None]


def _batch(loaded: Loaded, prompts: Sequence[Sequence[int]], generate: GenerateConfig) -> list[str]:
    model: Any = loaded.model
    tokenizer: Any = loaded.tokenizer
    longest = max(map(len, prompts))
    most = generate.max_new_tokens
    if loaded.max_positions is not None:
        most = min(most, max(1, loaded.max_positions - longest))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    ids = torch.full((len(prompts), longest), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, longest - len(prompt) :] = 1
    ends = _ends(loaded)
    # transformers' own criterion for texts works through the whole vocabulary first.
    done = Done(tokenizer, longest, [most] * len(prompts), AnswerShape(stop_ids=frozenset(ends or ())), generate.stop)
    with loaded.autocast():
        generated = model.generate(
            input_ids=ids.to(loaded.device),
            attention_mask=mask.to(loaded.device),
            max_new_tokens=most,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=1.0,
            eos_token_id=ends,
            pad_token_id=pad,
            use_cache=True,
            stopping_criteria=StoppingCriteriaList([done]),
        )
    texts = tokenizer.batch_decode(generated[:, longest:], skip_special_tokens=True)
    return [_until(text, generate.stop) for text in texts]


def _ends(loaded: Loaded) -> list[int] | None:
    """The tokens that end an answer: those of the generation config and the tokenizer's."""
    model: Any = loaded.model
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = {*(named if isinstance(named, list) else [named]), loaded.tokenizer.eos_token_id} - {None}
    return sorted(ends) or None


def _until(text: str, stop: Sequence[str]) -> str:
    places = [text.find(word) for word in stop if word and word in text]
    return text[: min(places)] if places else text
