"""Answers of the hub beside those of lm-eval's hf model: see evaluation.py."""

import contextlib
import io
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Generation:
    """Lengths of a task with answers, in tokens."""

    context: int
    most: int
    """New tokens at most."""

    mean: float | None = None
    """New tokens on average, about. None: all answers have as many as are allowed, but where the model ends one."""

    few_shot: int = 0
    """Tokens in front of each question, the same for all."""


GENERATIONS = {
    "short": Generation(100, 32, 2),
    "long": Generation(100, 128),
    "mixed": Generation(60, 250, 125, 850),
}
UNTIL = ["\n\nQuestion:", "<end of it>"]
"""Stop texts, which are looked for but hardly come."""

WARM_UP = 4
LEAST_OF_MEAN = 0.7
"""A token that makes answers shorter than this fraction of the mean length is no end."""


def compare_answers(
    loaded: Any, name: str, contexts: Sequence[str], scale: float, makers: dict[str, Callable[[], Any]]
) -> list[dict[str, Any]]:
    """Answer the same prompts by all contenders, and print a line for each as it comes.

    Args:
        loaded: the model.
        name: in `GENERATIONS`.
        contexts: the prompts.
        scale: of the numbers of new tokens.
        makers: name -> a function that makes the model of lm-eval. The hub is the first.
    """
    asked = GENERATIONS[name]
    rows: list[dict[str, Any]] = []
    most = max(2, round(asked.most * scale))
    ours: list[str] = []
    with _ending(loaded, contexts, most, None if asked.mean is None else max(1.5, asked.mean * scale)) as (mean, longest):
        for who, make in makers.items():
            row: dict[str, Any] = {"workload": name, "requests": len(contexts), "who": who, "mean": mean, "longest": longest}
            try:
                texts, seconds = _answered(make, contexts, most)
            except (RuntimeError, ValueError) as error:
                print(f"| {name} | {len(contexts)} | | {who} | failed: {str(error).splitlines()[0][:80]} | | |", flush=True)
                continue
            ours = ours or texts
            row |= {"seconds": seconds, "ratio": seconds / rows[0]["seconds"] if rows else 1.0}
            row["equal"] = sum(a == b for a, b in zip(texts, ours, strict=True))
            rows.append(row)
            print(
                f"| {name} | {len(contexts)} | {mean:.0f}, at most {longest} | {who} | {seconds:.2f} | {row['ratio']:.2f} | "
                f"{row['equal']} of {len(texts)} |",
                flush=True,
            )
    return rows


def _answered(make: Callable[[], Any], contexts: Sequence[str], most: int) -> tuple[list[str], float]:
    """Answers, and the seconds that they took, without those of a first few."""
    from lm_eval.api.instance import Instance

    options = {"until": UNTIL, "max_gen_toks": most, "do_sample": False}
    instances = [Instance("generate_until", {}, (context, options), number) for number, context in enumerate(contexts)]
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        make().generate_until(instances[:WARM_UP], disable_tqdm=True)
        lm = make()
        _synchronize()
        begin = time.perf_counter()
        texts = lm.generate_until(instances, disable_tqdm=True)
        _synchronize()
        return texts, time.perf_counter() - begin


@contextlib.contextmanager
def _ending(loaded: Any, contexts: Sequence[str], most: int, mean: float | None) -> Iterator[tuple[float, int]]:
    """Let some tokens end answers, so that they have about `mean` tokens. Gives their mean and their longest."""
    free = _free_answers(loaded, contexts, most)
    config = loaded.model.generation_config
    before = config.eos_token_id
    ends = chosen_ends(free, mean) if mean is not None else set()
    config.eos_token_id = sorted(ends) or None
    ends = ends | {loaded.tokenizer.eos_token_id}  # lm-eval ends an answer at its text
    lengths = [next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids)) for ids in free]
    try:
        yield sum(lengths) / len(lengths), max(lengths)
    finally:
        config.eos_token_id = before


def _free_answers(loaded: Any, contexts: Sequence[str], most: int) -> list[list[int]]:
    """Answers that nothing ends."""
    from hub.config.generate import GenerateConfig
    from hub.tasks.generate.ends import Ends
    from hub.tasks.generate.engine import made

    settings = GenerateConfig(max_new_tokens=most, temperature=0.0, repetition_penalty=1.0)
    prompts = [loaded.tokenizer(context)["input_ids"] for context in contexts]
    found: dict[int, list[int]] = {}
    for done in made(loaded, prompts, settings, Ends(loaded.tokenizer, (), ())):
        found |= {number: one.token_ids for number, one in done.items()}
    return [found[number] for number in range(len(prompts))]


def chosen_ends(free: Sequence[Sequence[int]], mean: float) -> set[int]:
    """Tokens that give answers of about a mean length as ends: for short answers the first tokens, otherwise any.

    Args:
        free: answers that nothing ended.
        mean: tokens of an answer.
    """
    begins = Counter(ids[0] for ids in free)
    places: dict[int, list[tuple[int, int]]] = {}
    for number, ids in enumerate(free):
        for token in set(ids):
            places.setdefault(token, []).append((number, list(ids).index(token) + 1))
    # Any order that has nothing to do with the text: multiples of a large prime.
    order = sorted(places, key=lambda token: (-begins[token] if mean <= 3 else 0, token * 2654435761 % 2**32))
    lengths = [len(ids) for ids in free]
    ends: set[int] = set()
    for token in order:
        if sum(lengths) <= mean * len(free):
            break
        cut = list(lengths)
        for number, length in places[token]:
            cut[number] = min(cut[number], length)
        if sum(cut) >= LEAST_OF_MEAN * mean * len(free):
            lengths = cut
            ends.add(token)
    return ends


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
