"""Rows of one form: where a template renders the texts of a conversation is known from the first one of its form.

The form of a row is all of its conversation but the texts: roles, order, other fields, the whitespace around texts, what a
template may look for in a content. Marks (`hub.data.tokens.marks`) find the texts of the first row of a form. Those of another
one are at the same places if its rendering is the same around its own texts. Each is compared, and marked where it differs.
The form in which a template is given messages is another thing: see `hub.data.tokens.forms`.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hub.data.formats.examples import Conversation
from hub.data.tokens.marks import NUM_PLAIN, Marker, Place, is_markable

_HOLE = "\0"
"""Stands for a text."""

_PLAIN = frozenset((str, int, float, bool, type(None)))
_MAX_CHARACTERS = 2**21
"""What is stored of all forms of a template, before it is forgotten."""

_SPAN_CHARACTERS = 50
"""As much as a place and what belongs to it take in memory."""


class Span(NamedTuple):
    """Characters of the assistant's in a rendered conversation."""

    begin: int
    end: int
    messages: tuple[int, ...]
    """Places of the messages that it has texts of. One, but for templates whose own tags say so."""


class Outline(NamedTuple):
    """A conversation without its texts, and the texts."""

    row_form: tuple[object, ...]
    bodies: list[str]
    """The text of each piece, without the whitespace around it."""


class _Outliner(Marker):
    """Takes out the texts that a marker marks."""

    def __init__(self, separators: re.Pattern[str]) -> None:
        super().__init__(separators, 0)
        self.bodies: list[str] = []

    def in_place_of(self, body: str) -> str:
        self.bodies.append(body)
        return _HOLE


def outline(conversation: Conversation, separators: re.Pattern[str]) -> Outline | None:
    """The form of a row, and its texts.

    Args:
        conversation: that of the row.
        separators: what the template may look for in a content.

    Returns:
        None: it has tools or calls, which are rarely of the same form, or a field whose value is no plain JSON.
    """
    if conversation.tools:
        return None
    outliner = _Outliner(separators)
    form: list[object] = [conversation.unmask]
    for place, message in enumerate(conversation.messages):
        if "tool_calls" in message:
            return None
        left = outliner.message(place, message)
        if len(left) == NUM_PLAIN:
            form += left["role"], left["content"]
        elif all(type(value) in _PLAIN for value in left.values()):
            form.append(tuple(left.items()))
        else:
            return None
    return Outline(tuple(form), outliner.bodies)


class _Anchor(NamedTuple):
    """A position in the renderings of rows of a form: so many characters behind a place, or behind the start."""

    num_places: int
    """Places before it."""

    offset: int


class _Turn(NamedTuple):
    """A turn of the assistant's in the renderings of rows of a form."""

    begin: _Anchor
    end: _Anchor
    messages: tuple[int, ...]
    is_open: bool
    """Whether the text decides if the whitespace at its end counts: see `without_space`."""


@dataclass(frozen=True, slots=True)
class RowForm:
    """What a template renders of the rows of a form."""

    parts: list[str]
    """What is rendered around places, with an empty text in each place."""

    order: list[int]
    """The piece in each place."""

    turns: list[_Turn]
    omitted: tuple[str, ...]
    behind_system: _Anchor | None


class Seen(NamedTuple):
    """A row whose form is known."""

    row_form: RowForm
    ends: list[int]
    """0, and where each place ends."""

    def turns(self) -> list[tuple[Span, bool]]:
        """Its turns, and whether `without_space` is to look at them."""
        return [
            (Span(self.position(begin), self.position(end), messages), is_open)
            for begin, end, messages, is_open in self.row_form.turns
        ]

    def position(self, anchor: _Anchor) -> int:
        """Where a position is in this row."""
        return self.ends[anchor.num_places] + anchor.offset


class RowForms:
    """What one template renders of rows, for each form of a row that was seen."""

    def __init__(self) -> None:
        self._forms: dict[tuple[object, ...], RowForm] = {}
        self._num_characters = 0

    def find(self, given: Outline, full: str) -> Seen | None:
        """What is known of a row.

        Args:
            given: its outline.
            full: its rendering.

        Returns:
            None: its form was not seen, or it is rendered in another way.
        """
        form = self._forms.get(given.row_form)
        if form is None:
            return None
        parts = form.parts.copy()
        parts[1::2] = [given.bodies[piece] for piece in form.order]
        if "".join(parts) != full or not is_markable(full):
            return None
        ends, position = [0], 0
        for number in range(0, len(parts) - 1, 2):
            position += len(parts[number]) + len(parts[number + 1])
            ends.append(position)
        return Seen(form, ends)

    def remember(
        self,
        given: Outline,
        full: str,
        places: Sequence[Place],
        turns: Iterable[tuple[Span, bool]],
        omitted: tuple[str, ...],
        behind_system: int | None,
    ) -> None:
        """Store what a row tells about its form, if its texts are rendered as they are.

        Args:
            given: its outline.
            full: its rendering.
            places: of its texts, in order.
            turns: as `Seen.turns`.
            omitted: what the template leaves out.
            behind_system: where its first message that is not the system's begins.
        """
        parts, position = [], 0
        for place in places:
            if full[place.start : place.end] != given.bodies[place.piece]:
                return
            parts += [full[position : place.start], ""]
            position = place.end
        parts.append(full[position:])
        known = []
        for (begin, end, messages), is_open in turns:
            first, last = _anchor(begin, places), _anchor(end, places)
            if first is None or last is None:
                return
            known.append(_Turn(first, last, messages, is_open))
        behind = _anchor(behind_system, places) if behind_system is not None else None
        if self._num_characters > _MAX_CHARACTERS:
            self._forms.clear()
            self._num_characters = 0
        self._num_characters += sum(map(len, parts)) + _SPAN_CHARACTERS * (len(parts) + len(known))
        self._forms[given.row_form] = RowForm(parts, [place.piece for place in places], known, omitted, behind)


def _anchor(position: int, places: Sequence[Place]) -> _Anchor | None:
    """A position of a rendering, relative to the places in it. None: it is within one."""
    before = [place for place in places if place.end <= position]
    if len(before) < len(places) and places[len(before)].start < position:
        return None
    return _Anchor(len(before), position - (before[-1].end if before else 0))
