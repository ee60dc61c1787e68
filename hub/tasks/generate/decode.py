"""The loop that generates answers: an answer that has ended leaves its batch at once, and the next prompts take its place.

A batch costs time for each row in each step, also for rows that have ended. So rows are taken out of the cache, and prompts
that wait are added to it (cache_rows.py), where a trial showed that the model's answers stay the same (batching.py). Other
models answer fixed batches by transformers' own loop.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from hub.config.generate import GenerateConfig
from hub.tasks.generate.ends import Ends
from hub.tasks.generate.passes import Passes, first_pass, padded, plain_config
from hub.tasks.generate.sampling import Processor, Sampler

REFILL = 0.25
"""Prompts join a batch when so many of its places are free: a pass over prompts costs as much as a step for a few rows."""

TOKENS_AT_ONCE = {"cuda": 32768, "cpu": 4096}
"""Most tokens of prompts in one pass, padding included."""

PADDING_AT_ONCE = {"cuda": 1024, "cpu": 24}
"""Padding in one pass that costs about as much as another pass over the weights of the model."""

PADDED_SHARE = 0.05
"""Padding that any pass may have, as a fraction of its tokens."""

_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


@dataclass(frozen=True)
class Question:
    """A prompt to answer."""

    number: int
    prompt: list[int]
    key: str
    """Equal keys, prompts and seeds give equal answers."""

    bound: int
    """Most new tokens."""


@dataclass(frozen=True)
class Made:
    """What was generated for a prompt."""

    token_ids: list[int]
    """With the token that ended it."""

    reason: str
    """stop: it ended by itself, or at a stop text. length: at its bound."""


@dataclass(frozen=True)
class Plan:
    """How prompts are answered."""

    model: Any
    device: torch.device
    pad: int
    settings: GenerateConfig
    ends: Ends
    most: Callable[[int, int], int]
    """Places of a batch, given the rows that it has and the tokens that the next row may come to."""

    moves: bool
    """Rows may leave a batch while it is generated."""

    pads: bool
    """Prompts of different lengths may be together."""

    use_cache: bool = True


class NoMemory(Exception):
    """A single prompt does not fit into memory."""

    def __init__(self, question: Question) -> None:
        """Args:
        question: the one that does not fit.
        """
        super().__init__(question.number)
        self.question = question


@dataclass
class _Batch:
    """Answers in the making: one for each row of `passes`."""

    questions: list[Question]
    made: list[list[int]]
    sampler: Sampler
    passes: Passes
    last: torch.Tensor
    """The last token of each answer."""

    def __len__(self) -> int:
        return len(self.questions)

    def take(self, scores: torch.Tensor, ends: Ends) -> dict[int, Made]:
        """Take the next token of each row, and take out the answers that have ended. The only wait for the device in a step."""
        self.last = scores.argmax(dim=-1)
        done: dict[int, Made] = {}
        left = []
        for row, token in enumerate(self.last.tolist()):
            question, ids = self.questions[row], self.made[row]
            ids.append(token)
            stopped = ends.reached(ids)
            if stopped or len(ids) >= question.bound:
                done[question.number] = Made(ids, "stop" if stopped else "length")
            else:
                left.append(row)
        if done:
            self._keep(_order(left))
        return done

    def _keep(self, order: list[int]) -> None:
        self.questions, self.made = [self.questions[row] for row in order], [self.made[row] for row in order]
        if order:
            self.last = self.last[torch.tensor(order, device=self.last.device)]
            self.sampler.keep(order)
            self.passes.keep(order)

    def join(self, other: "_Batch") -> None:
        self.questions, self.made = self.questions + other.questions, self.made + other.made
        self.sampler.join(other.sampler)
        self.last = torch.cat([self.last, other.last])
        self.passes.join(other.passes)


def _order(left: list[int]) -> list[int]:
    """The rows that are left, with the last ones in the places of those that are not: most rows stay where they are."""
    here = set(left)
    tail = [row for row in left if row >= len(left)]
    return [row if row in here else tail.pop() for row in range(len(left))]


class Decoder:
    """Answers prompts by a plan."""

    def __init__(self, plan: Plan, questions: Sequence[Question], stream: Any = None) -> None:
        """Args:
        plan: how.
        questions: the longest prompts first. They begin in this order.
        stream: what transformers calls a streamer. It is for a single question in fixed batches.
        """
        self._plan, self._stream = plan, stream
        self._pending = deque(questions)
        self._batch: _Batch | None = None
        self._most, self._full = max(1, len(questions)), 0

    def run(self) -> Iterator[dict[int, Made]]:
        """Generate answers, and yield them by number as they end.

        Raises:
            NoMemory: a single prompt does not fit into memory.
        """
        while self._pending or self._batch:
            chunk = self._next()
            flight = [*(self._batch.questions if self._batch else ()), *chunk]
            done: dict[int, Made] | None = None
            try:
                done = self._begin(chunk) if chunk else self._step()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            if done is None:
                self._retry(flight)
            elif done:
                yield done

    def _next(self) -> list[Question]:
        """The prompts that begin now."""
        plan, pending, rows = self._plan, self._pending, len(self._batch or ())
        if not pending or (rows and (not plan.pads or rows >= self._full)):
            return []
        head = pending[0]
        places = max(1, min(self._most, plan.most(rows, len(head.prompt) + head.bound)))
        # Joining waits until enough places are free, and then fills all.
        waiting = places - max(1, int(places * REFILL)) + 1
        if rows >= places:
            self._full = waiting
            return []
        chunk = self._chunk(places - rows)
        self._full = waiting if rows + len(chunk) >= places else places
        return chunk

    def _chunk(self, most: int) -> list[Question]:
        """The next prompts of about one length."""
        plan, pending = self._plan, self._pending
        chunk = [pending.popleft()]
        longest, padding = len(chunk[0].prompt), 0
        free = PADDING_AT_ONCE.get(plan.device.type, PADDING_AT_ONCE["cpu"])
        if plan.moves:
            most = min(most, max(1, TOKENS_AT_ONCE.get(plan.device.type, TOKENS_AT_ONCE["cpu"]) // longest))
        while pending and len(chunk) < most:
            padding += longest - len(pending[0].prompt)
            if padding and (not plan.pads or (plan.moves and padding > max(free, PADDED_SHARE * longest * len(chunk)))):
                break
            chunk.append(pending.popleft())
        return chunk

    def _begin(self, chunk: list[Question]) -> dict[int, Made]:
        plan, prompts = self._plan, [one.prompt for one in chunk]
        sampler = Sampler(plan.settings, plan.ends.stop_ids, prompts, [one.key for one in chunk], plan.device)
        if not plan.moves:
            return self._fixed(chunk, sampler)
        logits, passes = first_pass(plan.model, prompts, plan.pad, plan.device)
        if not passes.can_move():
            raise TypeError(f"rows of {type(passes.cache).__name__} can't be moved")
        begun = _Batch(list(chunk), [[] for _ in chunk], sampler, passes, torch.empty(0))
        done = begun.take(sampler.scores(logits, None), plan.ends)
        if self._batch and len(begun):
            self._batch.join(begun)
        elif len(begun):
            self._batch = begun
        return done

    def _step(self) -> dict[int, Made]:
        batch = self._batch
        assert batch is not None
        done = batch.take(batch.sampler.scores(batch.passes.step(batch.last), batch.last), self._plan.ends)
        if not len(batch):
            self._batch = None
        return done

    def _fixed(self, chunk: list[Question], sampler: Sampler) -> dict[int, Made]:
        """Answer prompts by the loop of transformers, until the last has ended."""
        plan = self._plan
        ids, mask = padded([one.prompt for one in chunk], plan.pad, plan.device)
        done = _Done(chunk, plan.ends)
        plan.model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=plain_config(
                max_new_tokens=max(one.bound for one in chunk),
                pad_token_id=plan.pad,
                eos_token_id=sorted(plan.ends.stop_ids),
                use_cache=plan.use_cache,
            ),
            logits_processor=LogitsProcessorList([Processor(sampler)]),
            stopping_criteria=StoppingCriteriaList([done]),
            streamer=self._stream,
        )
        return done.found

    def _retry(self, flight: list[Question]) -> None:
        """Begin again with half as many at a time."""
        self._batch = None
        if self._plan.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(flight) <= 1:
            raise NoMemory(flight[0])
        self._most, self._full = len(flight) // 2, 0
        self._pending = deque(sorted([*flight, *self._pending], key=lambda one: -len(one.prompt)))


class _Done(StoppingCriteria):
    """Ends each row of a fixed batch by itself."""

    def __init__(self, questions: Sequence[Question], ends: Ends) -> None:
        self.eos_token_id = torch.tensor(sorted(ends.stop_ids))  # tells transformers to pad rows that have ended
        self._questions, self._ends = questions, ends
        self._made: list[list[int]] = [[] for _ in questions]
        self.found: dict[int, Made] = {}

    def __call__(self, input_ids: torch.Tensor, scores: Any, **others: Any) -> torch.Tensor:
        """Whether each row has ended: (rows,)."""
        for question, ids, token in zip(self._questions, self._made, input_ids[:, -1].tolist(), strict=True):
            if question.number in self.found:
                continue
            ids.append(token)
            stopped = self._ends.reached(ids)
            if stopped or len(ids) >= question.bound:
                self.found[question.number] = Made(ids, "stop" if stopped else "length")
        return torch.tensor([one.number in self.found for one in self._questions], device=input_ids.device)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the host."""
    return any(words in str(error).lower() for words in _NO_MEMORY)
