"""Generates answers in batches: prompts sorted by length, as many together as fit into memory. Each is what it is alone."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from hub.config.generate import GenerateConfig
from hub.config.option import AUTO
from hub.errors import ModelError
from hub.models.structure import base_of, text_config
from hub.system.memory import allowed_memory, free_host_memory
from hub.tasks.generate.answer_shape import AnswerShape, answer_shape, opens_thoughts, split_thoughts
from hub.tasks.generate.batching import PADDED, SINGLE, batching_of, has_cache, padded, plain_config
from hub.tasks.generate.sampling import processors
from hub.tasks.loading import Loaded

MOST_TOGETHER = {"cuda": 256, "cpu": 16}
"""Answers that are generated together at most, with `generate.batch_size=auto`."""

MEMORY_FRACTION = 0.5
"""Share of the free memory that the keys and values of a batch may take."""

_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
_TAIL = 64
"""Tokens at the end of a prompt that tell whether it opens a block of thoughts."""


@dataclass(frozen=True)
class Answer:
    """What a model answered."""

    text: str
    """The answer without thoughts, without what the chat template writes around it, and without the stop text."""

    token_ids: list[int]
    """All that was generated, the token that ended it included."""

    finish_reason: str
    """stop: it ended by itself, or at a stop text. length: it was cut at the bound on new tokens or at the context."""

    thoughts: str = ""
    """What stands in the block of thoughts before it."""


class Done(StoppingCriteria):
    """Ends each row by itself: at a token that ends answers, at a stop text, or at its own bound."""

    def __init__(self, tokenizer: Any, width: int, bounds: Sequence[int], shape: AnswerShape, stop: Sequence[str]) -> None:
        """Args:
        tokenizer: of the prompts.
        width: tokens of the longest prompt.
        bounds: most new tokens of each row.
        shape: what ends an answer.
        stop: texts that end one besides.
        """
        self.eos_token_id = torch.tensor(sorted(shape.stop_ids))
        self._tokenizer, self._width, self._bounds = tokenizer, width, bounds
        self._stop_ids, self._texts = shape.stop_ids, (*stop, *shape.stop_texts)
        self._window = 2 * max((len(text.encode()) for text in self._texts), default=0) + 8
        self.ends: list[int | None] = [None] * len(bounds)
        """New tokens of each row that has ended."""

        self.reasons = ["length"] * len(bounds)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **others: Any) -> torch.Tensor:
        """Whether each row has ended: (rows,)."""
        count = input_ids.shape[1] - self._width
        last = input_ids[:, -1].tolist()
        for row, end in enumerate(self.ends):
            if end is not None:
                continue
            if last[row] in self._stop_ids or self._has_text(input_ids[row], count):
                self.ends[row], self.reasons[row] = count, "stop"
            elif count >= self._bounds[row]:
                self.ends[row] = count
        return torch.tensor([end is not None for end in self.ends], device=input_ids.device)

    def _has_text(self, row: torch.Tensor, count: int) -> bool:
        if not self._texts:
            return False
        tail = self._tokenizer.decode(row[-min(count, self._window) :].tolist(), skip_special_tokens=False)
        return any(text in tail for text in self._texts)


def answers(
    loaded: Loaded,
    prompts: Sequence[list[int]],
    settings: GenerateConfig,
    progress: Callable[[int], None] | None = None,
    keys: Sequence[str] | None = None,
) -> list[Answer]:
    """The answers to prompts, in their order.

    Args:
        loaded: see `generated`.
        prompts: see `generated`.
        settings: see `generated`.
        keys: see `generated`.
        progress: is called with the number of new answers, after each batch.

    Raises:
        ModelError: see `generated`.
    """
    found: dict[int, Answer] = {}
    for batch in generated(loaded, prompts, settings, keys):
        found |= batch
        if progress is not None:
            progress(len(batch))
    return [found[number] for number in range(len(prompts))]


def generated(
    loaded: Loaded, prompts: Sequence[list[int]], settings: GenerateConfig, keys: Sequence[str] | None = None
) -> Iterator[dict[int, Answer]]:
    """Yield answers by the number of their prompt, a batch at a time, the longest prompts first.

    Args:
        loaded: the model. It is put into evaluation mode while it generates.
        prompts: token ids, each of at least one token and fewer than the model can hold.
        settings: how to sample.
        keys: one text for each prompt: equal keys, prompts and seeds give equal answers. None: the numbers of the prompts.

    Raises:
        ModelError: a prompt is empty or too long for the model, or does not fit into memory.
    """
    keys = keys if keys is not None else [str(number) for number in range(len(prompts))]
    for number, prompt in enumerate(prompts):
        if not prompt or (loaded.max_positions is not None and len(prompt) >= loaded.max_positions):
            raise ModelError(
                f"{loaded.name}: prompt {number} has {len(prompt)} tokens. Allowed: at least 1, and fewer than the "
                f"{loaded.max_positions} that the model can hold"
            )
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    with _generating(loaded):
        several = len(prompts) > 1 and has_cache(loaded.model, loaded.dtype)
        kind = batching_of(loaded.model, loaded.dtype) if several else SINGLE
        bound = MOST_TOGETHER[loaded.device.type if loaded.device.type in MOST_TOGETHER else "cpu"]
        most = 1 if kind == SINGLE else bound if settings.batch_size == AUTO else int(settings.batch_size)
        while order:
            size = most
            if settings.batch_size == AUTO:
                size = min(most, rows_in_memory(loaded, len(prompts[order[0]]) + settings.max_new_tokens))
            chosen = order[:size]
            if kind != PADDED:
                chosen = [number for number in chosen if len(prompts[number]) == len(prompts[chosen[0]])]
            try:
                batch = _batch(loaded, [prompts[n] for n in chosen], settings, [keys[n] for n in chosen])
            except RuntimeError as error:
                if not any(words in str(error).lower() for words in _NO_MEMORY):
                    raise
                if len(chosen) > 1:
                    most = len(chosen) // 2
                    continue
                raise ModelError(
                    f"{loaded.name}: a prompt of {len(prompts[chosen[0]])} tokens with up to {settings.max_new_tokens} "
                    "new ones does not fit into memory. Type a smaller generate.max_new_tokens"
                ) from None
            finally:
                if loaded.device.type == "cuda":
                    torch.cuda.empty_cache()
            order = order[len(chosen) :]
            yield dict(zip(chosen, batch, strict=True))


def one_answer(
    loaded: Loaded, prompt: list[int], settings: GenerateConfig, key: str, receive: Callable[[list[int]], None]
) -> Answer:
    """Generate one answer, and hand over its tokens as they come.

    Args:
        loaded: the model.
        prompt: token ids.
        settings: how to sample.
        key: see `generated`.
        receive: is called with new tokens. What it raises ends the generation.

    Raises:
        ModelError: it does not fit into memory.
    """
    try:
        with _generating(loaded):
            return _batch(loaded, [prompt], settings, [key], _Stream(receive))[0]
    except RuntimeError as error:
        if not any(words in str(error).lower() for words in _NO_MEMORY):
            raise
        raise ModelError(
            f"{loaded.name}: {len(prompt)} tokens with up to {settings.max_new_tokens} new ones do not fit into memory. "
            "Type a smaller generate.max_new_tokens"
        ) from None


def rows_in_memory(loaded: Loaded, num_tokens: int) -> int:
    """How many rows of so many tokens have room for their keys and values. At least 1."""
    config = text_config(loaded.model)

    def number(name: str, default: int) -> int:
        value = getattr(config, name, None)
        return value if isinstance(value, int) and value > 0 else default  # some families have a list, one for each layer

    heads = number("num_attention_heads", 1)
    width = number("num_key_value_heads", heads) * number("head_dim", max(1, number("hidden_size", 1024) // heads))
    each = num_tokens * number("num_hidden_layers", 32) * 2 * width * loaded.dtype.itemsize + 8 * number("vocab_size", 1)
    free = float(free_host_memory())
    if loaded.device.type == "cuda":
        free = min(
            torch.cuda.mem_get_info(loaded.device)[0],
            allowed_memory(loaded.device) - torch.cuda.memory_allocated(loaded.device),
        )
    return max(1, int(free * MEMORY_FRACTION / each))


class _Stream:
    """What transformers calls a streamer: it gets the prompt first, then the new tokens."""

    def __init__(self, receive: Callable[[list[int]], None]) -> None:
        self._receive, self._is_prompt = receive, True

    def put(self, value: torch.Tensor) -> None:
        if not self._is_prompt:
            self._receive(value.reshape(-1).tolist())
        self._is_prompt = False

    def end(self) -> None:
        """Nothing is left."""


@contextmanager
def _generating(loaded: Loaded) -> Iterator[None]:
    """Evaluation mode without gradient, in the arithmetic of the model. Afterwards the model is as it was."""
    model = loaded.model
    training = [module for module in model.modules() if module.training]
    config = base_of(model).config
    before = config.use_cache
    model.eval()
    config.use_cache = True
    try:
        with torch.no_grad(), torch.autocast(loaded.device.type, loaded.dtype, enabled=_needs_autocast(loaded)):
            yield
    finally:
        config.use_cache = before
        for module in training:
            module.training = True


def _needs_autocast(loaded: Loaded) -> bool:
    """Whether some weights have another type than the arithmetic: adapters and weights in training are in float32."""
    if loaded.dtype == torch.float32:
        return False
    return any(weight.dtype == torch.float32 for weight in loaded.model.parameters())


def _batch(
    loaded: Loaded,
    prompts: list[list[int]],
    settings: GenerateConfig,
    keys: Sequence[str],
    stream: _Stream | None = None,
) -> list[Answer]:
    model: Any = getattr(loaded.model, "module", loaded.model)
    tokenizer = loaded.tokenizer
    shape = shape_of(loaded)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(shape.stop_ids, default=0)
    input_ids, mask = padded(prompts, int(pad), loaded.device)
    room = [loaded.max_positions - len(prompt) if loaded.max_positions else settings.max_new_tokens for prompt in prompts]
    bounds = [min(settings.max_new_tokens, left) for left in room]
    done = Done(tokenizer, input_ids.shape[1], bounds, shape, settings.stop)
    given = model.generate(
        input_ids=input_ids,
        attention_mask=mask,
        generation_config=plain_config(
            max_new_tokens=max(bounds),
            pad_token_id=int(pad),
            eos_token_id=sorted(shape.stop_ids),
            use_cache=has_cache(loaded.model, loaded.dtype),
        ),
        logits_processor=processors(settings, keys, mask.sum(dim=1), shape.stop_ids),
        stopping_criteria=StoppingCriteriaList([done]),
        streamer=stream,
    )
    new = given[:, input_ids.shape[1] :].tolist()
    return [
        answer_of(loaded, prompt, row[: end if end is not None else len(row)], reason, settings.stop)
        for prompt, row, end, reason in zip(prompts, new, done.ends, done.reasons, strict=True)
    ]


def shape_of(loaded: Loaded) -> AnswerShape:
    """What ends an answer of a model: what its template, its tokenizer and its generation config say."""
    shape = answer_shape(loaded.tokenizer)
    configured = getattr(base_of(loaded.model).generation_config, "eos_token_id", None)
    more = configured if isinstance(configured, list) else [] if configured is None else [configured]
    return replace(shape, stop_ids=shape.stop_ids | {int(number) for number in more})


def answer_of(loaded: Loaded, prompt: list[int], ids: list[int], reason: str, stop: Sequence[str] = ()) -> Answer:
    """An answer from what was generated.

    Args:
        loaded: the model.
        prompt: token ids of the prompt.
        ids: what was generated.
        reason: why it ended.
        stop: texts that end an answer.
    """
    tokenizer, shape = loaded.tokenizer, shape_of(loaded)
    kept = ids[:-1] if ids and ids[-1] in shape.stop_ids else ids
    text = str(tokenizer.decode(kept, skip_special_tokens=False))
    for word in (*stop, *shape.stop_texts):
        text = text.partition(word)[0]
    opened = opens_thoughts(str(tokenizer.decode(prompt[-_TAIL:], skip_special_tokens=False)))
    thoughts, text = split_thoughts(text, shape.header, opened)
    return Answer(text, ids, reason, thoughts)
