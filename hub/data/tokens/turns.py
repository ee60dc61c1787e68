"""Where the assistant's turns are in a rendered conversation, and what the chat template leaves out.

Places are found with marks (`hub.data.tokens.marks`), never by searching for texts: a user may write any text, that of a
header or the assistant's own words included.

* A template with `{% generation %}` tags says itself what is trained.
* Otherwise a turn is what stands around its texts and is there in other renderings, too. Before them: all behind the
  generation prompt. So the loss is on all that the model must write at that point, a header such as
  `<|channel|>final<|message|>` or an empty block of thoughts included. Behind them: what is there when the turn is the last
  one, as far as it is there when another message follows, up to the token that ends text generation.
* Some templates end a turn differently once others follow it: `<|return|>` becomes `<|end|>`. The end is then trained in the
  last turn only. Thus no model is taught to write, where it should stop, a token that does not stop it.

What stands around a turn is the same in most rows, so that these other renderings are rarely needed.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hub.data.formats.examples import Conversation
from hub.data.formats.messages import REASONING
from hub.data.json_values import JsonObject
from hub.data.tokens.chat_template import ChatTemplate, chat_template
from hub.data.tokens.edges import agreement, end_of, ends_with, last_end, without_space
from hub.data.tokens.forms import Seen, Span, outline
from hub.data.tokens.marks import NAME, SCHEMA, Marked, Place, first_free, mark, with_json_arguments
from hub.data.tokens.omissions import omissions, refusal
from hub.data.tokens.special_tokens import special_tokens
from hub.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NEXT_QUESTION: JsonObject = {"role": "user", "content": "What?"}


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as its chat template renders it."""

    text: str

    spans: list[Span]
    """The assistant's turns."""

    omitted: tuple[str, ...]
    """What the template leaves out: keys of `hub.data.tokens.omissions.KINDS`."""

    behind_system: int | None = None
    """Where the first message that is not the system's begins. None: the conversation has no `unmask`."""


class TooLongError(Exception):
    """A text has so many characters that it is not tokenized."""

    def __init__(self, num_characters: int) -> None:
        super().__init__(f"{num_characters} characters")
        self.num_characters = num_characters


def find_turns(tokenizer: "PreTrainedTokenizerBase", conversation: Conversation, max_characters: int | None = None) -> Rendered:
    """Render a conversation and find the assistant's turns in it.

    Args:
        tokenizer: must have a chat template.
        conversation: what to render.
        max_characters: longer renderings are refused. None: any length is taken.

    Raises:
        DataError: the template refuses the conversation, leaves out an answer or a call, or a turn can't be found in what
            it renders.
        TooLongError: it has more characters than `max_characters`.
    """
    template = chat_template(tokenizer, conversation.tools)
    full, json_arguments = _render(tokenizer, template, conversation)
    if max_characters is not None and len(full) > max_characters:
        raise TooLongError(len(full))
    try:
        full.encode()
    except UnicodeEncodeError:
        raise DataError(f"{conversation.where}: the text holds half a character (a lone surrogate, as \\ud83d)") from None
    tagged: list[tuple[int, int]] | None = None
    if template.is_tagged:
        messages = with_json_arguments(conversation.messages) if json_arguments else conversation.messages
        tagged = template.tagged_spans(tokenizer, messages, conversation.tools)
    given = outline(conversation, template.separators)
    seen = template.forms.find(given, full) if given is not None else None
    if seen is not None and (tagged is None or tagged == [span[:2] for span, _ in seen.turns()]):
        return _as_seen(tokenizer, full, seen)
    row = _Row(tokenizer, template, conversation, full, json_arguments)
    omitted = omissions(conversation, row.marked.pieces, set(row.first), tokenizer)
    if tagged is not None:
        found = row.of_tags(tagged)
    else:
        answers = [place for place, message in enumerate(conversation.messages) if message["role"] == "assistant"]
        found = [span for place in answers for span in row.spans(place)]
    spans, turns = _in_order(found, conversation.where), []
    for place, span in enumerate(spans):
        stands_alone = place + 1 == len(spans) or spans[place + 1].begin > span.end
        spans[place] = Span(*without_space(tokenizer, full, span.begin, span.end), span.messages) if stands_alone else span
        tail = full[max([span.begin, *(each.end for each in row.places if each.end <= span.end)]) : span.end]
        ends_itself = not tail or ends_with(tail.rstrip(), special_tokens(tokenizer))
        is_open = stands_alone and (tagged is not None or not ends_itself)  # as they are, to be compared with the tags
        turns.append((span if is_open else spans[place], is_open))
    behind = row.behind_system() if conversation.unmask else None
    if given is not None:
        template.forms.remember(given, full, row.places, turns, omitted, behind)
    return Rendered(full, spans, omitted, behind)


def _as_seen(tokenizer: "PreTrainedTokenizerBase", full: str, seen: Seen) -> Rendered:
    """What `find_turns` gives of a conversation whose form is known."""
    spans = [
        Span(*without_space(tokenizer, full, span.begin, span.end), span.messages) if is_open else span
        for span, is_open in seen.turns()
    ]
    behind = seen.form.behind_system
    return Rendered(full, spans, seen.form.omitted, seen.position(behind) if behind is not None else None)


def _render(tokenizer: "PreTrainedTokenizerBase", template: ChatTemplate, conversation: Conversation) -> tuple[str, bool]:
    """Render a conversation, its arguments of calls as objects, or as JSON texts where the template takes only these.

    Returns:
        What is rendered, and whether arguments are JSON texts.
    """
    messages, tools, where = conversation.messages, conversation.tools, conversation.where
    has_calls = any("tool_calls" in message for message in messages)
    if not has_calls:
        try:
            return template.render(tokenizer, messages, tools, where), False
        except DataError as error:
            raise refusal(error, conversation, tokenizer, template) from None
    texts = with_json_arguments(messages)
    if template.json_arguments:
        try:
            return template.render(tokenizer, texts, tools, where), True
        except DataError:
            template.json_arguments = False
    refused: DataError | None = None
    try:
        full = template.render(tokenizer, messages, tools, where)
        if not _shows_python(full, messages):
            return full, False
    except DataError as error:
        refused = error
    try:
        with_texts = template.render(tokenizer, texts, tools, where)
    except DataError:
        if refused is not None:
            raise refusal(refused, conversation, tokenizer, template) from None
        return full, False
    template.json_arguments = True
    return with_texts, True


def _shows_python(rendered: str, messages: list[JsonObject]) -> bool:
    """Whether arguments were rendered as Python writes an object, `{'x': None}`, and not as JSON."""
    calls = [call for message in messages for call in message.get("tool_calls", ())]  # type: ignore[attr-defined]
    arguments = [call["function"]["arguments"] for call in calls]
    return any(value and str(value) in rendered for value in arguments)


def _in_order(spans: list[Span], where: str) -> list[Span]:
    """The spans of turns, none of which reaches into the next one."""
    ordered: list[Span] = []
    for begin, end, owners in sorted(spans):
        reached = ordered[-1].end if ordered else 0
        if end < reached:
            raise DataError(f"{where}: the chat template mixes two assistant turns, so their loss can't be placed")
        ordered.append(Span(max(begin, reached), end, owners))
    return ordered


class _Row:
    """One conversation, its rendering, and where its texts are in it."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        template: ChatTemplate,
        conversation: Conversation,
        full: str,
        json_arguments: bool,
    ) -> None:
        self.tokenizer, self.template, self.conversation, self.full = tokenizer, template, conversation, full
        self.where = conversation.where
        marked = self._mark(json_arguments)
        rendered = self._render(marked, marked.messages) if marked is not None else None
        text, self.places = marked.read(rendered) if marked is not None and rendered is not None else ("", [])
        if marked is None or text != full:
            raise self._not_found(next(n for n, message in enumerate(conversation.messages) if message["role"] == "assistant"))
        self.marked = marked
        self.first: dict[int, Place] = {}
        """Piece -> the first place where it is rendered."""

        for place in self.places:
            self.first.setdefault(place.piece, place)

    def _mark(self, json_arguments: bool) -> Marked | None:
        first = first_free(self.full)
        return mark(self.conversation, self.template.separators, first, json_arguments) if first is not None else None

    def _render(self, marked: Marked, messages: list[JsonObject], prompt: bool = False) -> str | None:
        """Render some of the marked messages. A template may refuse a part of a conversation although it takes the whole."""
        try:
            return self.template.render(self.tokenizer, messages, marked.tools, self.where, prompt) if messages else None
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
        return head, self.marked.found, bool(self.marked.tools), *around

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
