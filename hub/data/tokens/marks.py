"""Marks around every text of a conversation: one rendering then shows where each text is, and which are missing.

A mark is a character before a text and another behind it, inside the whitespace around the text, which templates strip. Texts
are cut at what the template itself may look for, such as `</think>`. A rendering without its marks must equal the rendering of
the unmarked conversation. Where it does, the marks changed nothing, and their places are those of the texts.
"""

import json
import re
from dataclasses import dataclass
from typing import NamedTuple

from hub.data.formats.examples import Conversation
from hub.data.formats.messages import REASONING
from hub.data.json_values import JsonObject, JsonValue

_HALF = 20_000
"""Marks of each kind: a text has the n-th character of a range before it, and the n-th of the range's second half behind it."""

_RANGES = (0x20000, 0x100000)
"""First characters of two ranges of `2 * _HALF` characters: rare Chinese, which Python prints as they are, and private use."""

_PATTERNS = {first: re.compile(f"([{chr(first)}-{chr(first + 2 * _HALF - 1)}])") for first in _RANGES}

_ESCAPE = "\\ud8"
_ESCAPED = re.compile(r"\\ud8[4-6][0-9a-f]\\ud[c-f][0-9a-f]{2}")
"""A character of the first range in JSON that is ASCII only."""

NUM_PLAIN = 2
"""Fields of a message that has a role and a content only."""

OPEN_THOUGHTS, CLOSE_THOUGHTS = "<think>", "</think>"
SCHEMA, TEXT, THOUGHT, REASON, NAME, ARGUMENT = "schema", "text", "thought", "reason", "name", "argument"
"""What a text is. A thought stands in the content, a reason in a field of its own."""


class Piece(NamedTuple):
    """A text that is marked."""

    message: int
    """Place of its message in the conversation. Of a schema: of the tool in the list of tools."""

    kind: str
    """One of the words above."""

    call: int = 0
    """Of a name or an argument: place of the call in its message."""


class Place(NamedTuple):
    """Where a piece is rendered."""

    start: int
    end: int
    piece: int
    """Its number."""


@dataclass(frozen=True, slots=True)
class Marked:
    """A conversation with marks."""

    messages: list[JsonObject]
    tools: list[JsonObject] | None
    pieces: list[Piece]
    first: int
    """First character of the range that the marks are from."""

    found: frozenset[str]
    """Separators in its contents."""

    copies: dict[int, list[int]]
    """Piece -> the pieces of equal messages that have its mark. They are rendered behind it, in order."""

    def read(self, rendered: str) -> tuple[str, list[Place]]:
        """The rendering without its marks, and where pieces are in it, in order. A piece may be there several times."""
        if _ESCAPE in rendered:  # JSON in ASCII writes a mark as two escapes
            rendered = _ESCAPED.sub(lambda match: str(json.loads(f'"{match.group()}"')), rendered)
        parts = _PATTERNS[self.first].split(rendered)
        places: list[Place] = []
        position, opened, start = 0, -1, 0
        for number in range(0, len(parts) - 1, 2):
            position += len(parts[number])
            mark = ord(parts[number + 1]) - self.first
            if mark < _HALF:
                opened, start = mark, position
            elif mark - _HALF == opened:
                if self.copies:
                    opened = self._copy(opened, places)
                places.append(Place(start, position, opened))
                opened = -1
        return "".join(parts[::2]), places

    def _copy(self, piece: int, places: list[Place]) -> int:
        """The first of the pieces with a mark that is in none of the places, or the last of these pieces."""
        same: list[int] = [piece, *self.copies.get(piece, ())]
        known = {place.piece for place in places}
        return next((number for number in same if number not in known), same[-1])


def first_free(text: str) -> int | None:
    """The range of marks of which a text has no character. None: it has some of all."""
    return next((first for first, pattern in _PATTERNS.items() if not pattern.search(text)), None)


def is_markable(text: str) -> bool:
    """Whether marks in a rendering can be told from the rest of it."""
    return (text.isascii() or first_free(text) is not None) and _ESCAPE not in text


def mark(conversation: Conversation, separators: re.Pattern[str], first: int, keep_equal: bool = False) -> Marked | None:
    """Mark the texts of a conversation.

    Args:
        conversation: its rendering has no character of the range of `first`.
        separators: what the template may look for in a content.
        first: from `first_free`.
        keep_equal: whether messages of others than the assistant that are equal stay so, since some templates find the last
            question by comparing messages. Such messages share their marks.

    Returns:
        None where there are more texts than marks.
    """
    marker = Marker(separators, first)
    messages: list[JsonObject] = []
    for place, message in enumerate(conversation.messages):
        equal = conversation.messages.index(message) if keep_equal and message["role"] != "assistant" else place
        messages.append(marker.message(place, message) if equal == place else marker.repeated(place, equal, messages[equal]))
    tools = [marker.schema(place, tool) for place, tool in enumerate(conversation.tools or ())]
    if len(marker.pieces) > _HALF:
        return None
    return Marked(messages, tools or None, marker.pieces, first, frozenset(marker.found), marker.copies)


class Marker:
    """Marks texts and counts them."""

    def __init__(self, separators: re.Pattern[str], first: int) -> None:
        self.separators, self.first = separators, first
        self.pieces: list[Piece] = []
        self.found: set[str] = set()
        self.copies: dict[int, list[int]] = {}

    def repeated(self, place: int, equal: int, marked: JsonObject) -> JsonObject:
        """A message with the marks of an earlier one that it is equal to."""
        for number, piece in enumerate(list(self.pieces)):
            if piece.message == equal and piece.kind != SCHEMA:
                self.copies.setdefault(number, []).append(len(self.pieces))
                self.pieces.append(piece._replace(message=place))
        return marked

    def message(self, place: int, message: JsonObject) -> JsonObject:
        marked = dict(message)
        marked["content"] = self.content(place, str(message["content"]))
        if len(message) == NUM_PLAIN:
            return marked
        thoughts = next((message[name] for name in REASONING if isinstance(message.get(name), str)), None)
        if isinstance(thoughts, str) and thoughts.strip():
            once = self.around(thoughts, Piece(place, REASON))
            marked |= {name: once for name in REASONING if message.get(name) == thoughts}
        if "tool_calls" in message:
            calls = message["tool_calls"]
            assert isinstance(calls, list)
            marked["tool_calls"] = [self.call(place, number, call) for number, call in enumerate(calls)]
        return marked

    def content(self, place: int, text: str) -> str:
        """Mark each piece of a content between separators."""
        if not (separators := list(self.separators.finditer(text))):
            return self.around(text, Piece(place, TEXT))
        self.found.update(separator.group() for separator in separators)
        kinds = _kinds([separator.group() for separator in separators])
        parts, position, num_before = [], 0, len(self.pieces)
        for number, kind in enumerate(kinds):
            separator = separators[number] if number < len(separators) else None
            parts.append(self.around(text[position : separator.start() if separator else None], Piece(place, kind)))
            if separator:
                parts.append(separator.group())
                position = separator.end()
        return "".join(parts) if len(self.pieces) > num_before else self.around(text, Piece(place, TEXT))

    def around(self, text: str, piece: Piece) -> str:
        """Mark one text, inside the whitespace around it."""
        body = text.strip()
        if not body:
            return text
        self.pieces.append(piece)
        if len(body) == len(text):
            return self.in_place_of(body)
        begin = text.find(body)
        return f"{text[:begin]}{self.in_place_of(body)}{text[begin + len(body) :]}"

    def in_place_of(self, body: str) -> str:
        """What stands in the place of the last piece."""
        number = (len(self.pieces) - 1) % _HALF
        return f"{chr(self.first + number)}{body}{chr(self.first + _HALF + number)}"

    def call(self, place: int, number: int, call: JsonObject) -> JsonObject:
        function = call["function"]
        assert isinstance(function, dict)
        name = self.around(str(function["name"]), Piece(place, NAME, number))
        arguments = self.argument(function["arguments"], Piece(place, ARGUMENT, number))
        return call | {"function": function | {"name": name, "arguments": arguments}}

    def argument(self, value: JsonValue, piece: Piece) -> JsonValue:
        if isinstance(value, str):
            return self.around(value, piece)
        if isinstance(value, list):
            return [self.argument(item, piece) for item in value]
        if isinstance(value, dict):
            return {key: self.argument(item, piece) for key, item in value.items()}
        return value

    def schema(self, place: int, tool: JsonObject) -> JsonObject:
        """Mark the name and the description of a function. Types and parameters are what templates look at."""
        inner = tool.get("function")
        function: JsonObject = inner if isinstance(inner, dict) else tool
        texts = {name: function[name] for name in ("name", "description") if isinstance(function.get(name), str)}
        marked = function | {name: self.around(str(text), Piece(place, SCHEMA)) for name, text in texts.items()}
        return tool | {"function": marked} if function is inner else marked


def _kinds(separators: list[str]) -> list[str]:
    """The kinds of the pieces around separators. Thoughts are within `<think>` tags, or before the first `</think>`."""
    kinds = [TEXT] * (len(separators) + 1)
    begin: int | None = 0
    for number, separator in enumerate(separators):
        if separator == OPEN_THOUGHTS:
            begin = number + 1
        elif separator == CLOSE_THOUGHTS and begin is not None:
            kinds[begin : number + 1] = [THOUGHT] * (number + 1 - begin)
            begin = None
    return kinds
