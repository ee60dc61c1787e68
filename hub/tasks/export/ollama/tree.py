"""The smallest tree of questions that tells which text stands at a place: each question is one that Go's templates can ask."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hub.tasks.export.ollama.probe import CALLS, CONTENT, SYSTEM, THOUGHT, TOOLS
from hub.tasks.export.ollama.small_chats import ASSISTANT, CALL, START, TOOL, USER

_MAX_DEPTH = 6
_SHOWN, _BEFORE_SHOWN = 40, 15

CONDITIONS = {
    "before": 'eq $before "{value}"',
    "tools": "$.Tools",
    "system": "$system",
    "first_user": "eq $i $first",
    "last_user": "eq $i $last",
    "after": "gt $i $last",
    "is_last": "eq $i $end",
    "first_tool": "eq $i $tool",
    "results": "$results",
    "content": ".Content",
    "thinking": ".Thinking",
    "off": "and $.IsThinkSet (not $.Think)",
    "on": "and $.IsThinkSet $.Think",
}
"""Feature of a place -> the condition in Go's language."""

_BEFORE = (START, TOOL, CALL, ASSISTANT, USER)


@dataclass(frozen=True)
class Split:
    """A question."""

    condition: str
    yes: "Tree"
    no: "Tree"


Tree = str | Split
"""A text, or a question."""


Place = tuple[Mapping[str, Any], str]
"""The features of a place, and the text that was seen there."""


class AmbiguousError(Exception):
    """Two texts stand at places that no question tells apart."""


def tree(places: Sequence[Place]) -> Tree:
    """Find the tree of fewest texts.

    Args:
        places: the features of each place where a text was seen, and the text.

    Raises:
        AmbiguousError: there is none.
    """
    unique = list({(tuple(sorted(seen.items())), text): (seen, text) for seen, text in places}.values())
    best = _tree(unique, 0, len(unique) + 1)
    if best is None:
        raise AmbiguousError(_clash(unique))
    return best[1]


def _clash(places: Sequence[Place]) -> str:
    """Two texts at places with the same features, from where they differ on."""
    known: dict[tuple[Any, ...], str] = {}
    for seen, text in places:
        other = known.setdefault(tuple(sorted(seen.items())), text)
        if other != text:
            same = next((n for n, (a, b) in enumerate(zip(other, text, strict=False)) if a != b), min(len(other), len(text)))
            first, second = (_shown(one[max(0, same - _BEFORE_SHOWN) :][:_SHOWN]) for one in (other, text))
            return f"{first!r} and {second!r}"
    return "too many texts"


def _shown(text: str) -> str:
    names = {SYSTEM: "{system}", CONTENT: "{text}", THOUGHT: "{thoughts}", TOOLS: "{tools}", CALLS: "{calls}"}
    return "".join(names.get(letter, letter) for letter in text)


def _tree(places: Sequence[Place], depth: int, below: int) -> tuple[int, Tree] | None:
    """The smallest tree, and the number of its texts, if that is below a bound."""
    least = len({text for _, text in places})
    if least >= below or (least > 1 and depth == _MAX_DEPTH):
        return None
    if least == 1:
        return 1, places[0][1]
    best: tuple[int, Tree] | None = None
    for name, value in _questions():
        yes = [one for one in places if one[0][name] == value]
        if not yes or len(yes) == len(places):
            continue
        one = _tree(yes, depth + 1, below - 1)
        other = _tree([one for one in places if one[0][name] != value], depth + 1, below - one[0]) if one else None
        if one is None or other is None:
            continue
        best = one[0] + other[0], Split(CONDITIONS[name].replace("{value}", str(value)), one[1], other[1])
        below = best[0]
        if below == least:
            break
    return best


def _questions() -> Sequence[tuple[str, Any]]:
    return [("before", value) for value in _BEFORE] + [(name, True) for name in CONDITIONS if name != "before"]


def conditions(found: Tree) -> set[str]:
    """All conditions of a tree."""
    if isinstance(found, str):
        return set()
    return {found.condition} | conditions(found.yes) | conditions(found.no)


def leaves(found: Tree) -> list[str]:
    """All texts of a tree."""
    return [found] if isinstance(found, str) else [*leaves(found.yes), *leaves(found.no)]


def mapped(found: Tree, change: Callable[[str], str]) -> Tree:
    """A tree whose texts are changed."""
    if isinstance(found, str):
        return change(found)
    return Split(found.condition, mapped(found.yes, change), mapped(found.no, change))
