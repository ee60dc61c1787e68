"""What a chat template leaves out of a conversation, in words, with what to type."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from hub.config.data import TEMPLATES
from hub.data.formats.examples import Conversation
from hub.data.json_values import JsonObject
from hub.data.tokens.chat_template import ChatTemplate
from hub.data.tokens.marks import ARGUMENT, NAME, SCHEMA, TEXT, THOUGHT, Piece
from hub.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KINDS = {
    "system": "the system message",
    "user": "a message of the user",
    "thoughts": "the thoughts of the last answer (all before </think>)",
    "earlier_thoughts": "the thoughts of earlier answers",
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
    "earlier_thoughts": f"To train them, give each answer a row in which it is the last one. Or t{_OWN[1:]} them",
    "texts": f"{_OWN} it",
    "results": f"{_OWN} it",
    "tools": f"{_OWN} them, or remove tools from the rows",
}
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


class Omission(NamedTuple):
    """Something that the template leaves out of some rows."""

    kind: str
    what: str
    """As a sentence without its number of rows."""

    where: Sequence[str]
    advice: str


def omissions(
    conversation: Conversation, pieces: Sequence[Piece], rendered: set[int], tokenizer: "PreTrainedTokenizerBase"
) -> tuple[str, ...]:
    """The kinds of what is missing in the rendering of a conversation.

    Args:
        conversation: what was rendered.
        pieces: its texts.
        rendered: the numbers of those that are in the rendering.
        tokenizer: the one with the template, for advice.

    Raises:
        DataError: an answer or a call is missing.
    """
    if len(rendered) == len(pieces):
        return ()
    found: set[str] = set()
    messages = conversation.messages
    last_answer = max(number for number, message in enumerate(messages) if message["role"] == "assistant")
    schemas: dict[int, bool] = {}
    answers: dict[int, list[tuple[Piece, bool]]] = {}
    for number, piece in enumerate(pieces):
        has = number in rendered
        if piece.kind == SCHEMA:
            schemas[piece.message] = schemas.get(piece.message, False) or has
        elif messages[piece.message]["role"] == "assistant":
            answers.setdefault(piece.message, []).append((piece, has))
        elif not has:
            found.add({"tool": "results"}.get(str(messages[piece.message]["role"]), str(messages[piece.message]["role"])))
    for place, given in answers.items():
        if not all(has for _, has in given):
            found |= _of_answer(given, place, last_answer, conversation, tokenizer)
    if not all(schemas.values()):
        found.add("tools")
    return tuple(kind for kind in KINDS if kind in found)


def _of_answer(
    given: list[tuple[Piece, bool]], place: int, last: int, conversation: Conversation, tokenizer: "PreTrainedTokenizerBase"
) -> set[str]:
    """What is missing of one of the assistant's messages."""
    missing = {piece.kind for piece, has in given if not has}
    texts = [has for piece, has in given if piece.kind == TEXT]
    has_calls = "tool_calls" in conversation.messages[place]
    if missing & {NAME, ARGUMENT}:
        num_calls = len({piece.call for piece, has in given if piece.kind in (NAME, ARGUMENT)})
        what = f"{'one of ' if num_calls > 1 else ''}the tool calls"
    elif not any(has for _, has in given) or (texts and not any(texts) and not has_calls):
        what = "the content"
    else:
        kinds = {"texts"} if TEXT in missing else set()
        return kinds | ({"thoughts" if place == last else "earlier_thoughts"} if THOUGHT in missing else set())
    raise DataError(
        f"{conversation.where}: the chat template leaves out {what} of message {place + 1} (assistant). Take the row out, or "
        f"type data.template={_similar(tokenizer) if what == 'the content' else 'FILE.jinja'} with a template that shows it"
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
            similar = _similar(tokenizer)
            if similar in TEMPLATES and (kind == "system" or (kind == "tools" and similar == "chatml")):
                advice = f"Type data.template={similar}, which writes {'it' if kind == 'system' else 'them'}"
            found.append(Omission(kind, f"the chat template leaves out {KINDS[kind]}", rows, advice))
    return found


def omission_lines(omitted: Mapping[str, Sequence[str]], tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """The same as lines for a log."""
    lines = []
    for item in described(omitted, tokenizer):
        rows = ", ".join(item.where[:_MAX_PLACES]) + (", ..." if len(item.where) > _MAX_PLACES else "")
        number = f"{len(item.where):,} row{'s' if len(item.where) > 1 else ''}"
        lines.append(f"In {number} {item.what} ({rows}). {item.advice}.")
    return lines


def refusal(
    error: DataError, conversation: Conversation, tokenizer: "PreTrainedTokenizerBase", template: ChatTemplate
) -> DataError:
    """The error of a template that refuses a conversation, with what to type where it is because of the system message."""
    messages, where = conversation.messages, conversation.where
    similar = _similar(tokenizer)
    if messages[0]["role"] != "system" or similar not in TEMPLATES:
        return error
    rest: list[JsonObject] = messages[1:]
    try:
        template.render(tokenizer, rest, replace(conversation, messages=rest).tools, where)
    except DataError:
        if "system role" not in str(error).lower():
            return error
    return DataError(f"{error}. It takes no system message: type data.template={similar}, which writes it")


def _similar(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The template of the hub in the form that the model knows. `FILE.jinja`: there is none."""
    text = str(tokenizer.chat_template or "")
    matches = [name for name, marker in _MARKERS.items() if marker in text and name in TEMPLATES]
    return matches[0] if matches else "FILE.jinja"
