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
from typing import TYPE_CHECKING, NamedTuple

from hub.data.formats.examples import Conversation
from hub.data.tokens.chat_template import ChatTemplate, RefusedError, chat_template
from hub.data.tokens.edges import ends_with, without_space
from hub.data.tokens.forms import PLAIN, PROBES, Form, forms, joined
from hub.data.tokens.marked_row import MarkedRow
from hub.data.tokens.omissions import KINDS, omissions
from hub.data.tokens.refusals import explained
from hub.data.tokens.row_forms import Outline, Seen, Span, outline
from hub.data.tokens.special_tokens import special_tokens
from hub.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OTHERS = frozenset(("system", "user", "results"))
"""What a template leaves out that takes it as a list of parts, perhaps: keys of `hub.data.tokens.omissions.KINDS`."""


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
    given = outline(conversation, template.separators)
    taken = _read(tokenizer, template, conversation, given, max_characters)
    tagged = _tagged(tokenizer, template, conversation, taken.form)
    if isinstance(taken.found, Seen):
        if tagged is None or tagged == [span[:2] for span, _ in taken.found.turns()]:
            return _as_seen(tokenizer, taken.full, taken.found)
        taken = _read(tokenizer, template, conversation, None, max_characters)
        tagged = _tagged(tokenizer, template, conversation, taken.form)
    row, full = taken.found, taken.full
    assert isinstance(row, MarkedRow)
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
        template.row_forms[taken.form].remember(given, full, row.places, turns, taken.omitted, behind)
    return Rendered(full, spans, taken.omitted, behind)


def _tagged(
    tokenizer: "PreTrainedTokenizerBase", template: ChatTemplate, conversation: Conversation, form: Form
) -> list[tuple[int, int]] | None:
    """The characters within the template's own tags. None: it has none."""
    if not template.is_tagged:
        return None
    return template.tagged_spans(tokenizer, form.of(conversation.messages), conversation.tools)


def _as_seen(tokenizer: "PreTrainedTokenizerBase", full: str, seen: Seen) -> Rendered:
    """What `find_turns` gives of a row whose form is known."""
    spans = [
        Span(*without_space(tokenizer, full, span.begin, span.end), span.messages) if is_open else span
        for span, is_open in seen.turns()
    ]
    behind = seen.row_form.behind_system
    return Rendered(full, spans, seen.row_form.omitted, seen.position(behind) if behind is not None else None)


def form_of(tokenizer: "PreTrainedTokenizerBase", template: ChatTemplate) -> Form:
    """The form in which a template takes small conversations. It is tried first, whatever other rows showed."""
    if template.form is not None:
        return template.form
    choices = []
    for probe in PROBES:
        try:
            choices.append(_first_taken(tokenizer, template, probe, PLAIN).form)
        except DataError:
            continue
    template.form = joined(choices)
    return template.form


class _Taken(NamedTuple):
    """A conversation in a form in which its template takes it."""

    full: str
    """What is rendered."""

    form: Form
    found: Seen | MarkedRow
    """Where its texts are, from another row of its form or from its own marks."""

    omitted: tuple[str, ...]
    """What the template leaves out."""


def _read(
    tokenizer: "PreTrainedTokenizerBase",
    template: ChatTemplate,
    conversation: Conversation,
    given: Outline | None,
    max_characters: int | None,
) -> _Taken:
    """The same as `_first_taken`, with what to type in its errors."""
    first = form_of(tokenizer, template)

    def is_taken(other: Conversation) -> bool:
        try:
            _first_taken(tokenizer, template, other, first)
        except DataError:
            return False
        return True

    try:
        return _first_taken(tokenizer, template, conversation, first, given, max_characters)
    except DataError as error:
        raise explained(error, conversation, tokenizer, is_taken) from None


def _first_taken(
    tokenizer: "PreTrainedTokenizerBase",
    template: ChatTemplate,
    conversation: Conversation,
    first: Form,
    given: Outline | None = None,
    max_characters: int | None = None,
) -> _Taken:
    """Render a conversation in the first form in which the template leaves out no answer, no call and no question.

    Args:
        tokenizer: the one of the template.
        template: what renders.
        conversation: what to render.
        first: the form to try first.
        given: its outline, to look for other rows of its form. None: its own marks are read.
        max_characters: longer renderings are refused.

    Returns:
        If the template leaves out a question in any form, the form with the least.
    """
    failure: DataError | None = None
    spare: _Taken | None = None
    least = (True, len(KINDS))
    for form in forms(conversation, template.reads_parts, template.reads_null, first):
        try:
            full = template.render(tokenizer, form.of(conversation.messages), conversation.tools, conversation.where)
            if max_characters is not None and len(full) > max_characters:
                raise TooLongError(len(full))
            shows_python = form.shows_python(full, conversation, template.text)
            if shows_python and (spare or not form.is_plain):
                continue
            taken = _taken(tokenizer, template, conversation, full, form, given)
        except DataError as error:
            if failure is None or (isinstance(failure, RefusedError) and not isinstance(error, RefusedError)):
                failure = error
            continue
        if not shows_python and not (template.reads_parts and not _OTHERS.isdisjoint(taken.omitted)):
            return taken
        if spare is None or (shows_python, len(taken.omitted)) < least:
            spare, least = taken, (shows_python, len(taken.omitted))
    if spare is not None:
        return spare
    assert failure is not None
    raise failure


def _taken(
    tokenizer: "PreTrainedTokenizerBase",
    template: ChatTemplate,
    conversation: Conversation,
    full: str,
    form: Form,
    given: Outline | None,
) -> _Taken:
    """Find the texts of a conversation, and what the template leaves out."""
    try:
        full.encode()
    except UnicodeEncodeError:
        raise DataError(f"{conversation.where}: the text holds half a character (a lone surrogate, as \\ud83d)") from None
    seen = template.row_forms[form].find(given, full) if given is not None else None
    if seen is not None:
        return _Taken(full, form, seen, seen.row_form.omitted)
    row = MarkedRow(tokenizer, template, conversation, full, form)
    omitted = omissions(conversation, row.marked.pieces, set(row.first), tokenizer, row.written_as_last)
    return _Taken(full, form, row, omitted)


def _in_order(spans: list[Span], where: str) -> list[Span]:
    """The spans of turns, none of which reaches into the next one."""
    ordered: list[Span] = []
    for begin, end, owners in sorted(spans):
        reached = ordered[-1].end if ordered else 0
        if end < reached:
            raise DataError(f"{where}: the chat template mixes two assistant turns, so their loss can't be placed")
        ordered.append(Span(max(begin, reached), end, owners))
    return ordered
