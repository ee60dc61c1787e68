"""What the doctor compares of a preference pair: its answers, their lengths, and what the row says of them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hub.data.formats.examples import Conversation, ExampleGroup
from hub.data.formats.preferences import PAIR
from hub.data.json_values import JsonObject, JsonValue
from hub.data.samples.sample import Item, mask_sum

_SCORE_FIELDS = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"), ("chosen-rating", "rejected-rating"))


@dataclass(frozen=True)
class ScannedPair:
    """A pair that can be used."""

    where: str
    prompt: str
    chosen: str
    """The answer as text, without case and spaces."""

    rejected: str
    lengths: tuple[int, int]
    """Tokens with loss of the two."""

    scores: tuple[float, float] | None
    """What the row says of them beside the answers."""


def scanned_pair(item: Item, example: ExampleGroup, fields: Mapping[str, JsonValue]) -> ScannedPair | None:
    """What the findings need of a pair. None: the row is none, or is left out.

    Args:
        item: what the row gives.
        example: what it is before it becomes tokens.
        fields: its fields.
    """
    if item.unit is None or tuple(example.examples) != PAIR:
        return None
    chosen, rejected = (each for each in example.examples.values() if isinstance(each, Conversation))
    start = chosen.completion or 0
    lengths = tuple(mask_sum(sample) for sample in item.unit.samples)
    return ScannedPair(
        item.where,
        _plain(chosen.messages[:start]),
        _plain(chosen.messages[start:]),
        _plain(rejected.messages[start:]),
        (lengths[0], lengths[1]),
        _scores(fields),
    )


def _plain(messages: Sequence[JsonObject]) -> str:
    texts = (f"{message['role']}: {message['content']} {message.get('tool_calls') or ''}" for message in messages)
    return re.sub(r"\s+", " ", "\n".join(texts)).strip().casefold()


def _scores(fields: Mapping[str, JsonValue]) -> tuple[float, float] | None:
    for names in _SCORE_FIELDS:
        values = [fields.get(name) for name in names]
        if all(isinstance(value, int | float) for value in values):
            return float(values[0]), float(values[1])  # type: ignore[arg-type]
    return None
