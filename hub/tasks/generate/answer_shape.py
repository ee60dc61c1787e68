"""What an answer looks like in a chat template, as training taught it: what stands before its text, and what ends it.

It is read off one short conversation that is rendered as for training. So an answer ends at the very token that training put
behind answers, whatever the model's generation config says.
"""

import re
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hub.data.formats.examples import Conversation
from hub.data.json_values import JsonObject
from hub.data.tokens.chat_template import chat_template
from hub.data.tokens.marks import CLOSE_THOUGHTS, OPEN_THOUGHTS
from hub.data.tokens.special_tokens import special_tokens
from hub.data.tokens.template import TrainedText, render
from hub.data.tokens.template_limits import limits
from hub.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WHERE = "the chat template"
_PROBE = "zq7"
_QUESTION: JsonObject = {"role": "user", "content": "Hi"}
ANSWER: JsonObject = {"role": "assistant", "content": _PROBE}
_CALL: JsonObject = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": _PROBE, "arguments": {}}}],
}
_TOOL: JsonObject = {
    "type": "function",
    "function": {"name": _PROBE, "description": "A tool.", "parameters": {"type": "object", "properties": {}}},
}


@dataclass(frozen=True)
class AnswerShape:
    """What an answer looks like in one chat template."""

    header: str = ""
    """What the model writes before the text of an answer without thoughts, such as `<|channel|>final<|message|>`."""

    stop_ids: frozenset[int] = frozenset()
    """Tokens that end an answer."""

    stop_texts: tuple[str, ...] = ()
    """Texts that end an answer, where the template has no token for it."""

    only_prompt: str = ""
    """The end of the template's generation prompt that no training sample has, such as an opened block of thoughts."""


_shapes: "weakref.WeakKeyDictionary[PreTrainedTokenizerBase, dict[str, AnswerShape]]" = weakref.WeakKeyDictionary()


def answer_shape(tokenizer: "PreTrainedTokenizerBase") -> AnswerShape:
    """The shape of answers in the chat template of a tokenizer. Without a template: the end-of-text token ends a text."""
    ends = frozenset() if tokenizer.eos_token_id is None else frozenset({int(tokenizer.eos_token_id)})
    if not tokenizer.chat_template:
        return AnswerShape(stop_ids=ends)
    text = chat_template(tokenizer, None).text
    known = _shapes.setdefault(tokenizer, {})
    if text not in known:
        known[text] = _read(tokenizer, ends)
    return known[text]


def _read(tokenizer: "PreTrainedTokenizerBase", ends: frozenset[int]) -> AnswerShape:
    special = special_tokens(tokenizer)
    rendered = _rendered(tokenizer, [_QUESTION, ANSWER], None)
    if rendered is None or not rendered.spans:
        return AnswerShape(stop_ids=ends)
    begin, end = rendered.spans[-1]
    header, _, tail = rendered.text[begin:end].partition(_PROBE)
    stop_ids, stop_texts = set(ends), []
    if token := _last_token(tail, special):
        stop_ids.add(special[token])
    elif tail.strip():
        stop_texts.append(tail.strip())
    called = _rendered(tokenizer, [_QUESTION, _CALL], [_TOOL])
    if called is not None and called.spans:
        begin_call, end_call = called.spans[-1]
        if token := _last_token(called.text[begin_call:end_call], special):
            stop_ids.add(special[token])
    return AnswerShape(header, frozenset(stop_ids), tuple(stop_texts), _only_prompt(tokenizer, rendered.text[:begin]))


def _rendered(
    tokenizer: "PreTrainedTokenizerBase", messages: list[JsonObject], tools: list[JsonObject] | None
) -> TrainedText | None:
    try:
        with limits(WHERE):
            return render(tokenizer, Conversation(messages, tools, WHERE))
    except DataError:
        return None


def _last_token(text: str, special: dict[str, int]) -> str | None:
    return next((token for token in special if text.endswith(token)), None)


def _only_prompt(tokenizer: "PreTrainedTokenizerBase", trained: str) -> str:
    """What the generation prompt has beyond the text that a training sample has before its first token with loss."""
    try:
        with limits(WHERE):
            prompt = chat_template(tokenizer, None).render(tokenizer, [_QUESTION], None, WHERE, prompt=True)
    except DataError:
        return ""
    return prompt[len(trained) :] if prompt.startswith(trained) else ""


def split_thoughts(text: str, header: str, opened: bool) -> tuple[str, str]:
    """The thoughts of an answer, and its text.

    Args:
        text: what was generated, without the token that ended it.
        header: of `AnswerShape`.
        opened: whether the prompt had opened a block of thoughts.
    """
    if header and text.startswith(header):
        return "", text[len(header) :]
    if CLOSE_THOUGHTS in text and (opened or text.lstrip().startswith(OPEN_THOUGHTS)):
        thoughts, _, rest = text.partition(CLOSE_THOUGHTS)
        return thoughts.replace(OPEN_THOUGHTS, "", 1).strip(), rest.lstrip("\n")
    if opened or text.lstrip().startswith(OPEN_THOUGHTS):
        return text.replace(OPEN_THOUGHTS, "", 1).strip(), ""
    return "", text


def opens_thoughts(prompt: str) -> bool:
    """Whether a prompt ends within a block of thoughts."""
    return bool(re.search(re.escape(OPEN_THOUGHTS) + r"\s*\Z", prompt))
