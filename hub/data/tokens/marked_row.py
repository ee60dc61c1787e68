"""One conversation with marks in its rendering: where its texts are, and the assistant's turns around them.

`hub.data.tokens.turns` says what belongs to a turn.
"""

from typing import TYPE_CHECKING

from hub.data.formats.examples import Conversation
from hub.data.formats.messages import REASONING
from hub.data.json_values import JsonObject
from hub.data.tokens.chat_template import ChatTemplate
from hub.data.tokens.edges import agreement, end_of, last_end
from hub.data.tokens.forms import Form
from hub.data.tokens.marks import NAME, SCHEMA, Marked, Place, first_free, mark
from hub.data.tokens.row_forms import Span
from hub.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NEXT_QUESTION: JsonObject = {"role": "user", "content": "What?"}


class MarkedRow:
    """One conversation, its rendering, and where its texts are in it."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        template: ChatTemplate,
        conversation: Conversation,
        full: str,
        form: Form,
    ) -> None:
        """Args:
        tokenizer: the one of the template.
        template: what renders.
        conversation: what was rendered.
        full: its rendering.
        form: the form in which the template was given it.

        Raises:
            DataError: marks change the rendering, so that nothing can be found in it.
        """
        self.tokenizer, self.template, self.conversation, self.full = tokenizer, template, conversation, full
        self.where, self.form = conversation.where, form
        marked = self._mark() or self._mark(keep_equal=True)
        if marked is None:
            raise self._not_found(next(n for n, message in enumerate(conversation.messages) if message["role"] == "assistant"))
        self.marked, self.places = marked
        self.first: dict[int, Place] = {}
        """Piece -> the first place where it is rendered."""

        for place in self.places:
            self.first.setdefault(place.piece, place)

    def _mark(self, keep_equal: bool = False) -> tuple[Marked, list[Place]] | None:
        """Marks that change nothing, and where they are. None: there are none such."""
        first = first_free(self.full)
        marked = mark(self.conversation, self.template.separators, first, keep_equal) if first is not None else None
        if marked is None or (keep_equal and not marked.copies):
            return None
        rendered = self._render(marked, marked.messages)
        text, places = marked.read(rendered) if rendered is not None else ("", [])
        return (marked, places) if text == self.full else None

    def written_as_last(self, piece: int) -> bool:
        """Whether the template writes a text if its message is the last one."""
        index = self.marked.pieces[piece].message
        key = self._surroundings(index), "as last", self.marked.pieces[piece].kind
        known = self.template.known_edges(key)
        if known is None:
            alone = self._render(self.marked, self.marked.messages[: index + 1])
            places = self.marked.read(alone)[1] if alone is not None else []
            known = int(any(place.piece == piece for place in places)), 0
            self.template.remember(key, known)
        return bool(known[0])

    def _render(self, marked: Marked, messages: list[JsonObject], prompt: bool = False) -> str | None:
        """Render some of the marked messages. A template may refuse a part of a conversation although it takes the whole."""
        try:
            given = self.form.of(messages)
            return self.template.render(self.tokenizer, given, marked.tools, self.where, prompt) if messages else None
        except DataError:
            return None

    def behind_system(self) -> int:
        """The first character of the first message that is not the system's."""
        messages = self.conversation.messages
        for place in self.places:
            piece = self.marked.pieces[place.piece]
            if piece.kind != SCHEMA and messages[piece.message]["role"] != "system":
                return place.start
        raise self._not_found(0)

    def of_tags(self, tagged: list[tuple[int, int]]) -> list[Span]:
        """The spans that the template's tags mark, with their messages.

        Raises:
            DataError: one has a text of another's in it.
        """
        spans = []
        owners: tuple[int, ...] = ()
        for begin, end in tagged:
            pieces = [self.marked.pieces[place.piece] for place in self.places if place.start < end and place.end > begin]
            for piece in pieces:
                role = "tools" if piece.kind == SCHEMA else self.conversation.messages[piece.message]["role"]
                if role != "assistant":
                    raise DataError(
                        f"{self.where}: the {{% generation %}} tags of the chat template hold a text of {role}. They must hold "
                        "the assistant's only. Type data.template=FILE.jinja"
                    )
            owners = tuple(sorted({piece.message for piece in pieces})) or owners
            spans.append(Span(begin, end, owners))
        return spans

    def spans(self, index: int) -> list[Span]:
        """The characters that the model must generate for message `index`, one of the assistant's.

        They are in one piece, but where a template writes the results of calls before a text that stands beside the calls.
        """
        spans = []
        for number, (begin, end, last) in enumerate(self._runs(index)):
            before = max((place for place in self.places if place.end <= begin), key=lambda place: place.end, default=None)
            behind = min((place.start for place in self.places if place.start >= end), default=len(self.full))
            header = self.full[before.end if before else 0 : begin]
            tail = self.full[end:behind]
            key = self._surroundings(index), number, header, tail
            edges = self.template.known_edges(key)
            if edges is None:
                edges = self._header(index, header, before) if number == 0 else 0, self._tail(index, last, tail)
                self.template.remember(key, edges)
            spans.append(Span(begin - edges[0], end + edges[1], (index,)))
        return spans

    def _runs(self, index: int) -> list[tuple[int, int, int]]:
        """Where the texts of a message are, without a text of another's between them: begin, end, and the last piece."""
        runs: list[tuple[int, int, int]] = []
        previous: Place | None = None
        repeats = self._repeats(index)
        for place in self.places:
            piece = self.marked.pieces[place.piece]
            if piece.message == index and piece.kind != SCHEMA:
                is_first = self.first[place.piece] is place
                goes_on = bool(runs) and previous is not None and previous.end == runs[-1][1]
                if is_first or (repeats > 0 and goes_on):
                    repeats -= not is_first
                    begin = runs.pop()[0] if goes_on else place.start
                    runs.append((begin, place.end, place.piece))
                elif piece.kind != NAME:  # a function's name may be repeated where its result follows
                    raise self._not_found(index)
            previous = place
        return runs

    def _repeats(self, index: int) -> int:
        """How many of the repetitions of texts of a message are its own: those that are there when it is the last one."""
        pieces = self.marked.pieces

        def count(places: list[Place]) -> int:
            own = [place.piece for place in places if pieces[place.piece].kind != SCHEMA]
            own = [piece for piece in own if pieces[piece].message == index]
            return len(own) - len(set(own))

        in_full = count(self.places)
        if not in_full or index == len(self.marked.messages) - 1:
            return in_full
        key = self._surroundings(index), "repeats", in_full
        known = self.template.known_edges(key)
        if known is None:
            alone = self._render(self.marked, self.marked.messages[: index + 1])
            known = count(self.marked.read(alone)[1]) if alone is not None else 0, 0
            self.template.remember(key, known)
        return known[0]

    def _surroundings(self, index: int) -> tuple[object, ...]:
        """What the edges of a turn may depend on besides the texts around it: neighbors, and what contents may ask for."""
        head = self.full[: self.places[0].start]
        around = [self._shape(number) for number in range(index - 2, index + 2)]
        return head, self.marked.found, bool(self.marked.tools), self.form, *around

    def _shape(self, index: int) -> tuple[object, ...] | None:
        if not 0 <= index < len(self.conversation.messages):
            return None
        message = self.conversation.messages[index]
        calls = message.get("tool_calls", ())
        assert isinstance(calls, list | tuple)
        return message["role"], len(calls), bool(message["content"]), any(name in message for name in REASONING)

    def _header(self, index: int, header: str, before: Place | None) -> int:
        """How much of the text before a turn is no part of the generation prompt."""
        prompt = self._behind(before.piece if before else None, self.marked.messages[:index], prompt=True)
        return len(header) - agreement(self.tokenizer, header, prompt) if prompt is not None else 0

    def _tail(self, index: int, last: int, tail: str) -> int:
        """How much of the text behind a turn ends it."""
        messages = self.marked.messages
        if index == len(messages) - 1:
            return last_end(self.tokenizer, tail, self._behind(last, [*messages, _NEXT_QUESTION]))
        alone = self._behind(last, messages[: index + 1])
        common = tail[: agreement(self.tokenizer, tail, alone)] if alone is not None else ""
        stop = self.tokenizer.eos_token
        if not common.strip() and isinstance(stop, str) and tail.lstrip().startswith(stop):
            return tail.index(stop) + len(stop)  # it ends a turn with the next message only
        return end_of(self.tokenizer, common)

    def _behind(self, piece: int | None, messages: list[JsonObject], prompt: bool = False) -> str | None:
        """What is rendered behind a piece, up to the next one. None for the piece: all before the first."""
        rendered = self._render(self.marked, messages, prompt)
        if rendered is None:
            return None
        text, places = self.marked.read(rendered)
        begin = 0 if piece is None else next((place.end for place in reversed(places) if place.piece == piece), None)
        if begin is None:
            return None
        return text[begin : min((place.start for place in places if place.start >= begin), default=len(text))]

    def _not_found(self, index: int) -> DataError:
        return DataError(
            f"{self.where}: message {index + 1} ({self.conversation.messages[index]['role']}) can't be found in what the chat "
            "template renders, so its loss can't be placed. Take the row out, or type data.template=FILE.jinja with a template "
            "that has {% generation %} tags"
        )
