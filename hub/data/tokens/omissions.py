"""What a chat template leaves out of a conversation, in words, with what to type."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from hub.config.data import TEMPLATES
from hub.data.formats.examples import Conversation
from hub.data.tokens.marks import ARGUMENT, NAME, REASON, SCHEMA, TEXT, THOUGHT, Piece
from hub.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KINDS = {
    "system": "the system message",
    "user": "a message of the user",
    "thoughts": "the thoughts in the content of answers (up to </think>)",
    "reasoning": "the thoughts in a field of answers (reasoning_content, thinking or reasoning)",
    "earlier_thoughts": "the thoughts of earlier answers (it writes those of a last one)",
    "texts": "a text of the assistant beside others, such as one beside tool calls",
    "results": "the result of a tool",
    "tools": "the schemas of tools",
}
"""Kind -> what is left out, for messages."""

_OWN = "Type data.template=FILE.jinja with a template that writes"
_ADVICE = {
    "system": f"{_OWN} it",
    "user": f"{_OWN} it",
    "thoughts": f"{_OWN} them (copy the model's own template and change it)",
    "reasoning": f"{_OWN} them (copy the model's own template and change it)",
    "earlier_thoughts": f"To train them, give each answer a row in which it is the last one. Or t{_OWN[1:]} them",
    "texts": f"{_OWN} it",
    "results": f"{_OWN} it",
    "tools": f"{_OWN} them, or remove tools from the rows",
}
_THOUGHTS = {THOUGHT: "thoughts", REASON: "reasoning"}
"""Kind of a piece -> what its loss is called."""

_MAX_PLACES = 3
_MARKERS = {
    "chatml": "<|im_start|>",
    "llama3": "<|start_header_id|>",
    "gemma": "<start_of_turn>",
    "mistral": "[INST]",
    "phi3": "<|end|>",
    "zephyr": "<|user|>",
}
"""Templates of the hub, each with what tells that a model knows its form."""


class LeftOutError(DataError):
    """A template leaves out what must be trained."""

    def __init__(self, what: str = "", advice: str = "") -> None:
        super().__init__(f"{what}. {advice}" if advice else what)
        self.what = what
        """As a sentence, with its place."""


class Omission(NamedTuple):
    """Something that the template leaves out of some rows."""

    kind: str
    what: str
    """As a sentence without its number of rows."""

    where: Sequence[str]
    advice: str


def omissions(
    conversation: Conversation,
    pieces: Sequence[Piece],
    rendered: set[int],
    tokenizer: "PreTrainedTokenizerBase",
    written_as_last: Callable[[int], bool],
) -> tuple[str, ...]:
    """The kinds of what is missing in the rendering of a conversation.

    Args:
        conversation: what was rendered.
        pieces: its texts.
        rendered: the numbers of those that are in the rendering.
        tokenizer: the one with the template, for advice.
        written_as_last: whether a piece is rendered if its message is the last one.

    Raises:
        LeftOutError: an answer or a call is missing.
    """
    if len(rendered) == len(pieces):
        return ()
    found: set[str] = set()
    messages = conversation.messages
    schemas: dict[int, bool] = {}
    answers: dict[int, dict[int, bool]] = {}
    for number, piece in enumerate(pieces):
        has = number in rendered
        if piece.kind == SCHEMA:
            schemas[piece.message] = schemas.get(piece.message, False) or has
        elif messages[piece.message]["role"] == "assistant":
            answers.setdefault(piece.message, {})[number] = has
        elif not has:
            found.add({"tool": "results"}.get(str(messages[piece.message]["role"]), str(messages[piece.message]["role"])))
    for place, given in answers.items():
        if all(given.values()):
            continue
        found |= _of_answer([(pieces[number], has) for number, has in given.items()], place, conversation, tokenizer)
        for number, has in given.items():
            if not has and (kind := _THOUGHTS.get(pieces[number].kind)):
                found.add("earlier_thoughts" if place < len(messages) - 1 and written_as_last(number) else kind)
    if not all(schemas.values()):
        found.add("tools")
    return tuple(kind for kind in KINDS if kind in found)


def _of_answer(
    given: list[tuple[Piece, bool]], place: int, conversation: Conversation, tokenizer: "PreTrainedTokenizerBase"
) -> set[str]:
    """What is missing of one of the assistant's messages besides its thoughts."""
    missing = {piece.kind for piece, has in given if not has}
    texts = [has for piece, has in given if piece.kind == TEXT]
    has_calls = "tool_calls" in conversation.messages[place]
    if missing & {NAME, ARGUMENT}:
        calls = {piece.call for piece, _ in given if piece.kind in (NAME, ARGUMENT)}
        lost = {piece.call for piece, has in given if not has and piece.kind in (NAME, ARGUMENT)}
        what = "the tool calls" if lost == calls else "one of the tool calls"
    elif not any(has for _, has in given) or (texts and not any(texts) and not has_calls):
        what = "the content"
    else:
        return {"texts"} if TEXT in missing else set()
    similar = similar_template(tokenizer)
    shows = similar in TEMPLATES and (what == "the content" or similar == "chatml")
    raise LeftOutError(
        f"{conversation.where}: the chat template leaves out {what} of message {place + 1} (assistant)",
        f"Take the row out, or type data.template={f'{similar}, which' if shows else 'FILE.jinja with a template that'} "
        f"shows {'it' if what == 'the content' else 'them'}",
    )


def described(omitted: Mapping[str, Sequence[str]], tokenizer: "PreTrainedTokenizerBase") -> list[Omission]:
    """What the template leaves out, in words.

    Args:
        omitted: kind -> rows.
        tokenizer: the one with the template.
    """
    found = []
    for kind in KINDS:
        if rows := omitted.get(kind):
            advice = _ADVICE[kind]
            if kind == "reasoning" and _keeps_tags(tokenizer):
                advice = "Write them into the content, as <think>...</think>, which it keeps. Or t" + advice[1:]
            similar = similar_template(tokenizer)
            if similar in TEMPLATES and (kind == "system" or (kind == "tools" and similar == "chatml")):
                advice = f"Type data.template={similar}, which writes {'it' if kind == 'system' else 'them'}"
            found.append(Omission(kind, f"the chat template leaves out {KINDS[kind]}", rows, advice))
    return found


def omission_lines(omitted: Mapping[str, Sequence[str]], tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """What the chat template leaves out, as lines for a log."""
    lines = []
    for item in described(omitted, tokenizer):
        rows = ", ".join(item.where[:_MAX_PLACES]) + (", ..." if len(item.where) > _MAX_PLACES else "")
        number = f"{len(item.where):,} row{'s' if len(item.where) > 1 else ''}"
        lines.append(f"In {number} {item.what} ({rows}). {item.advice}.")
    return lines


def _keeps_tags(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the template writes thoughts in the content of a last answer."""
    thought = "0f3a9c"
    messages = [
        {"role": "user", "content": "What?"},
        {"role": "assistant", "content": f"<think>\n{thought}\n</think>\n\nIt is."},
    ]
    try:
        return thought in str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception:  # a template may refuse this conversation, in any way
        return False


def similar_template(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The template of the hub in the form that the model knows. `FILE.jinja`: there is none."""
    text = str(tokenizer.chat_template or "")
    matches = [name for name, marker in _MARKERS.items() if marker in text and name in TEMPLATES]
    return matches[0] if matches else "FILE.jinja"
