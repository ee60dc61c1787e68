"""Rows that say which answer is better, or whether one is good: each becomes a group of conversations.

A pair has the roles `chosen` and `rejected`. What both begin with is their prompt. Only the assistant's turns behind it are
trained. Of a list of answers with scores, the best one is chosen and the worst one rejected.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

from hub.data.formats.converters import as_messages, conversation, transcript, with_system
from hub.data.formats.examples import Conversation, ExampleGroup, naming_role
from hub.data.json_values import JsonObject, JsonValue, json_if_text, kind_of, listed
from hub.data.sources.entries import Row
from hub.errors import DataError

PAIR = ("chosen", "rejected")
DESIRABLE, UNDESIRABLE = "desirable", "undesirable"
"""Roles of single answers that were judged."""

JUDGED = (PAIR, (DESIRABLE,), (UNDESIRABLE,))
"""The roles that a row of judged answers may have."""

REFUSED = (
    "rows with chosen and rejected answers say which is better. This algorithm trains on answers, not on preferences. To train "
    "on the chosen ones type data.format=chosen; to learn the preference type algo=lora_dpo"
)
_PROMPTS = ("prompt", "instruction")
_LISTS = ("completions", "responses")
_SCORES = ("scores", "ratings")
_TEXT_OF_ANSWER = ("response", "completion", "text", "content")
_SCORE_OF_ANSWER = ("overall_score", "score", "rating")
_KNOWN = ("prompt", "system", *PAIR)
_COMPARED = ("role", "content", "tool_calls", "thinking")
_MAX_SHOWN = 60


def from_preference(row: Row, format: str) -> ExampleGroup:
    """A pair of answers, or a list of answers with scores.

    Raises:
        DataError: it can't be trained on.
    """
    row, known = _as_pair(row)
    for name in PAIR:
        if row.value.get(name) in (None, "", []):
            raise DataError(
                f"{row.where}: this row has no {name} answer. A row of the format {format} has chosen and rejected, or "
                f"completions with scores. Its fields: {listed(row.value)}. Give one, or take the row out"
            )
    both = {name: _side(row, format, name, known) for name in PAIR}
    chosen, rejected = both["chosen"].messages, both["rejected"].messages
    shared = _num_shared(chosen, rejected)
    _check_difference(row.where, chosen, rejected, shared)
    examples = {name: _behind_prompt(each, shared) for name, each in both.items()}
    unused = tuple(dict.fromkeys(name for each in both.values() for name in each.unused))
    return ExampleGroup(dict(examples), row.where, format, unused)


def from_judged(row: Row, format: str) -> ExampleGroup:
    """A prompt, its completion, and whether that is good. A pair is taken too: its answers are a good and a bad one.

    Raises:
        DataError: it can't be trained on.
    """
    if row.value.get("label") is None and any(row.value.get(name) is not None for name in (*PAIR, *_LISTS)):
        return from_preference(row, format)
    if missing := [name for name in ("prompt", "completion", "label") if row.value.get(name) is None]:
        raise DataError(
            f"{row.where}: this row has no {missing[0]}. A row of the format {format} has prompt, completion and label (true "
            f"or false), or chosen and rejected. Its fields: {listed(row.value)}"
        )
    label = row.value["label"]
    if isinstance(label, str):  # in a CSV file
        label = {"true": True, "false": False}.get(label.strip().lower(), label)
    if not isinstance(label, bool):
        raise DataError(f"{row.where}: label is {_short(label)}. Allowed: true (a good completion) or false (a bad one)")
    role = DESIRABLE if label else UNDESIRABLE
    prompt = with_system(as_messages(row.value["prompt"], "user", row.where, "prompt"), row)
    completion = as_messages(row.value["completion"], "assistant", row.where, "completion")
    known = ("prompt", "completion", "label", "system")
    made = conversation(row, format, prompt + completion, ("tools",), known, len(prompt))
    return ExampleGroup({role: _behind_prompt(made, len(prompt))}, row.where, format, made.unused)


def _side(row: Row, format: str, name: str, known: tuple[str, ...]) -> Conversation:
    """The whole conversation with one of the two answers."""
    value, prompt = row.value[name], row.value.get("prompt")
    with naming_role(row.where, name):
        answer = as_messages(value, "assistant", row.where, name)
        if prompt in (None, ""):
            messages = transcript(value, row.where, name) if isinstance(value, str) and len(answer) == 1 else answer
        elif len(answer) > 1 and answer[0].get("role") != "assistant":
            messages = answer  # it begins with the prompt, as in UltraFeedback
        else:
            messages = as_messages(prompt, "user", row.where, "prompt") + answer
        return conversation(row, format, with_system(messages, row), ("tools",), known)


def _behind_prompt(made: Conversation, num_prompt: int) -> Conversation:
    """The conversation with loss behind its first messages only."""
    return replace(made, without_loss=made.without_loss | frozenset(range(num_prompt)), completion=num_prompt)


def _num_shared(chosen: list[JsonObject], rejected: list[JsonObject]) -> int:
    """Messages that both conversations begin with."""
    number = 0
    for one, other in zip(chosen, rejected, strict=False):
        if any(one.get(name) != other.get(name) for name in _COMPARED):
            break
        number += 1
    return number


def _check_difference(where: str, chosen: list[JsonObject], rejected: list[JsonObject], shared: int) -> None:
    if shared == len(chosen) == len(rejected):
        raise DataError(f"{where}: chosen and rejected are the same, so nothing says which is better. Take the row out")
    if shared in (len(chosen), len(rejected)):
        short = "chosen" if shared == len(chosen) else "rejected"
        raise DataError(f"{where}: {short} is only the beginning of the other one. Give both an answer, or take the row out")
    first, second = chosen[shared], rejected[shared]
    if "assistant" not in (first["role"], second["role"]) or shared == 0:
        raise DataError(
            f"{where}: chosen and rejected have different prompts: message {shared + 1} is {_short(first['content'])} in the "
            f"one and {_short(second['content'])} in the other. Give both the same prompt, or take the row out"
        )
    if first["role"] != second["role"]:
        raise DataError(
            f"{where}: message {shared + 1} is of the {first['role']} in chosen and of the {second['role']} in rejected. Both "
            "must go on with an answer"
        )


def _as_pair(row: Row) -> tuple[Row, tuple[str, ...]]:
    """The row as a pair, and the fields that were read for that."""
    value = row.value
    name = next((name for name in _LISTS if value.get(name) is not None), None)
    if name is None or any(side in value for side in PAIR):
        return row, _KNOWN
    answers, scores = _scored(row, name)
    best, worst = max(range(len(scores)), key=scores.__getitem__), min(range(len(scores)), key=scores.__getitem__)
    if scores[best] == scores[worst]:
        raise DataError(f"{row.where}: all {name} have the score {scores[best]:g}, so none is better. Take the row out")
    prompt = next((field for field in _PROMPTS if value.get(field) is not None), "prompt")
    pair = {"prompt": value.get(prompt), "chosen": answers[best], "rejected": answers[worst]}
    return Row(value | pair, row.file, row.line), (*_KNOWN, prompt, name, *_SCORES)


def _scored(row: Row, name: str) -> tuple[list[JsonValue], list[float]]:
    """The answers of a row, and the score of each."""
    answers = json_if_text(row.value[name], row.where, name)
    if not isinstance(answers, list) or len(answers) < 2:
        raise DataError(f"{row.where}: {name} must be a list of two answers or more, each with a score")
    field = next((field for field in _SCORES if row.value.get(field) is not None), None)
    scores: JsonValue
    if field is not None:
        scores = json_if_text(row.value[field], row.where, field)
        texts = answers
    else:
        field = "score"
        scores = [_of_answer(answer, _SCORE_OF_ANSWER) for answer in answers]
        texts = [_of_answer(answer, _TEXT_OF_ANSWER) for answer in answers]
    if not isinstance(scores, list) or len(scores) != len(texts):
        number = len(scores) if isinstance(scores, list) else kind_of(scores)
        raise DataError(f"{row.where}: {name} has {len(texts)} answers, {field} has {number}. Each answer needs a score")
    numbers = []
    for place, score in enumerate(scores, 1):
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise DataError(f"{row.where}: the score of answer {place} is {_short(score)}, not a number")
        numbers.append(float(score))
    return texts, numbers


def _of_answer(answer: JsonValue, names: tuple[str, ...]) -> JsonValue:
    """What an answer has in the first of some fields that it has."""
    if not isinstance(answer, Mapping):
        return None
    return next((answer[name] for name in names if answer.get(name) is not None), None)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."
