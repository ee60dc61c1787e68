"""Generates answers: as many together as the model and the memory allow. Each is what it is alone."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from hub.config.generate import GenerateConfig
from hub.config.option import AUTO
from hub.errors import ModelError
from hub.models.structure import base_of, text_config
from hub.system.memory import allowed_memory, free_host_memory
from hub.tasks.generate.answer_shape import AnswerShape, answer_shape, opens_thoughts, split_thoughts
from hub.tasks.generate.batching import PADDED, SINGLE, batching_of, can_move, has_cache
from hub.tasks.generate.decode import Decoder, Made, NoMemory, Plan, Question
from hub.tasks.generate.ends import Ends
from hub.tasks.loading import Loaded

MOST_TOGETHER = {"cuda": 256, "cpu": 32}
"""Answers that are generated together at most, with `generate.batch_size=auto`."""

MEMORY_FRACTION = 0.5
"""Share of the free memory that the keys and values of a batch may take."""

_MANY = 1 << 62
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
    """Yield answers by the number of their prompt, as they end. The longest prompts begin first.

    Args:
        loaded: the model. It is put into evaluation mode while it generates.
        prompts: token ids, each of at least one token and fewer than the model can hold.
        settings: how to sample.
        keys: one text for each prompt: equal keys, prompts and seeds give equal answers. None: the numbers of the prompts.

    Raises:
        ModelError: a prompt is empty or too long for the model, or does not fit into memory.
    """
    for number, prompt in enumerate(prompts):
        if not prompt or (loaded.max_positions is not None and len(prompt) >= loaded.max_positions):
            raise ModelError(
                f"{loaded.name}: prompt {number} has {len(prompt)} tokens. Allowed: at least 1, and fewer than the "
                f"{loaded.max_positions} that the model can hold"
            )
    shape = shape_of(loaded)
    ends = Ends(loaded.tokenizer, shape.stop_ids, (*settings.stop, *shape.stop_texts))
    for done in made(loaded, prompts, settings, ends, keys):
        yield {
            number: answer_of(loaded, prompts[number], one.token_ids, one.reason, settings.stop, shape)
            for number, one in done.items()
        }


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
    shape = shape_of(loaded)
    ends = Ends(loaded.tokenizer, shape.stop_ids, (*settings.stop, *shape.stop_texts))
    (done,) = made(loaded, [prompt], settings, ends, [key], stream=_Stream(receive))
    return answer_of(loaded, prompt, done[0].token_ids, done[0].reason, settings.stop, shape)


def made(
    loaded: Loaded,
    prompts: Sequence[list[int]],
    settings: GenerateConfig,
    ends: Ends,
    keys: Sequence[str] | None = None,
    option: str = "generate.max_new_tokens",
    stream: "_Stream | None" = None,
) -> Iterator[dict[int, Made]]:
    """Yield the tokens of answers by the number of their prompt, as they end.

    Args:
        loaded: see `generated`.
        prompts: see `generated`.
        settings: see `generated`. Its stop texts are not read.
        ends: what ends an answer.
        keys: see `generated`.
        option: what bounds the new tokens, for the message if memory runs out.
        stream: gets the tokens of a single answer as they come.

    Raises:
        ModelError: a prompt does not fit into memory.
    """
    keys = keys if keys is not None else [str(number) for number in range(len(prompts))]
    questions = [
        Question(number, list(prompt), key, max(1, min(settings.max_new_tokens, (loaded.max_positions or _MANY) - len(prompt))))
        for number, (prompt, key) in enumerate(zip(prompts, keys, strict=True))
    ]
    questions.sort(key=lambda one: -len(one.prompt))
    try:
        with _generating(loaded):
            yield from Decoder(_plan(loaded, settings, ends, len(prompts)), questions, stream).run()
    except NoMemory as error:
        raise ModelError(
            f"{loaded.name}: a prompt of {len(error.question.prompt)} tokens with up to {settings.max_new_tokens} new ones "
            f"does not fit into memory. Type a smaller {option}"
        ) from None
    finally:
        if loaded.device.type == "cuda":
            torch.cuda.empty_cache()


def _plan(loaded: Loaded, settings: GenerateConfig, ends: Ends, num_prompts: int) -> Plan:
    """How prompts are answered: as many together as the model and the memory allow."""
    cached = has_cache(loaded.model, loaded.dtype)
    kind = batching_of(loaded.model, loaded.dtype) if num_prompts > 1 and cached else SINGLE
    bound = MOST_TOGETHER[loaded.device.type if loaded.device.type in MOST_TOGETHER else "cpu"]

    def most(rows: int, num_tokens: int) -> int:
        if kind == SINGLE:
            return 1
        if settings.batch_size != AUTO:
            return int(settings.batch_size)
        return min(bound, rows + rows_in_memory(loaded, num_tokens))

    pad = loaded.tokenizer.pad_token_id
    return Plan(
        model=getattr(loaded.model, "module", loaded.model),
        device=loaded.device,
        pad=int(pad if pad is not None else min(ends.stop_ids, default=0)),
        settings=settings,
        ends=ends,
        most=most,
        moves=kind != SINGLE and can_move(loaded.model, loaded.dtype),
        pads=kind == PADDED,
        use_cache=cached,
    )


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
        unused = torch.cuda.memory_reserved(loaded.device) - torch.cuda.memory_allocated(loaded.device)
        free = min(
            torch.cuda.mem_get_info(loaded.device)[0] + unused,
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


def shape_of(loaded: Loaded) -> AnswerShape:
    """What ends an answer of a model: what its template, its tokenizer and its generation config say."""
    shape = answer_shape(loaded.tokenizer)
    configured = getattr(base_of(loaded.model).generation_config, "eos_token_id", None)
    more = configured if isinstance(configured, list) else [] if configured is None else [configured]
    return replace(shape, stop_ids=shape.stop_ids | {int(number) for number in more})


def answer_of(
    loaded: Loaded, prompt: list[int], ids: list[int], reason: str, stop: Sequence[str], shape: AnswerShape
) -> Answer:
    """An answer from what was generated.

    Args:
        loaded: the model.
        prompt: token ids of the prompt.
        ids: what was generated.
        reason: why it ended.
        stop: texts that end an answer.
        shape: what else ends one, see `shape_of`.
    """
    tokenizer = loaded.tokenizer
    kept = ids[:-1] if ids and ids[-1] in shape.stop_ids else ids
    text = str(tokenizer.decode(kept, skip_special_tokens=False))
    for word in (*stop, *shape.stop_texts):
        text = text.partition(word)[0]
    opened = opens_thoughts(str(tokenizer.decode(prompt[-_TAIL:], skip_special_tokens=False)))
    thoughts, text = split_thoughts(text, shape.header, opened)
    return Answer(text, ids, reason, thoughts)
