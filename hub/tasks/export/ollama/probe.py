"""How a chat template writes chats, read off how it renders small ones whose every text is a marker.

Nothing is known of families of models, and no Jinja is translated. Each rendering is cut at the texts of its messages. What
stands between two texts is a joint. A joint has the places of the system prompt, the tools, the calls and the thoughts in it as
single characters, which stand for them.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

from hub.data.formats.examples import Conversation
from hub.data.json_values import JsonObject
from hub.data.tokens.edges import agreement
from hub.data.tokens.rendering import render_prompt
from hub.data.tokens.template_limits import limits
from hub.errors import DataError
from hub.tasks.export.ollama.small_chats import (
    ASSISTANT,
    CALL,
    END,
    PROBED_TOOLS,
    START,
    SYSTEM_TEXT,
    TOOL,
    USER,
    Chat,
    arguments_of_call,
    chats_with_tools,
    marker,
    name_of_call,
    plain_chats,
    thought,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SYSTEM, CONTENT, THOUGHT, TOOLS, CALLS = "\ue000", "\ue001", "\ue002", "\ue003", "\ue004"
"""What stands for a text in a joint."""

WHERE = "a sample chat"
_SPACES = "\n "


class UnknownFormError(Exception):
    """The chat template does something that can't be read off: its text says what, without a subject."""


@dataclass(frozen=True)
class Joint:
    """What stands between two texts, and where it was seen."""

    text: str
    before: str
    after: str
    seen: Mapping[str, Any]
    """Feature -> value, of `hub.tasks.export.ollama.tree`."""


@dataclass(frozen=True)
class JsonForm:
    """How JSON is written: `json.dumps` with these."""

    indent: int | None = None
    comma: str = ", "
    colon: str = ": "

    def write(self, value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, indent=self.indent, separators=(self.comma, self.colon))


FORMS = (JsonForm(), JsonForm(None, ",", ":"), JsonForm(4, ","), JsonForm(2, ","))


@dataclass
class Found:
    """How a chat template writes chats."""

    joints: list[Joint] = field(default_factory=list)
    ends: dict[str, str] = field(default_factory=dict)
    """Kind of a message -> what ends it."""

    cuts: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Kind of a message, or `system` -> the whitespace that is cut off its text, left and right: `""`, a line break, or all."""

    as_json: set[str] = field(default_factory=set)
    """Kinds of messages whose text is written as JSON."""

    tool_form: JsonForm | None = None
    is_function_only: bool = False
    tool_depth: int = 0
    """How deep tools stand in a list that is indented."""

    between_tools: str = ""
    call_form: JsonForm | None = None
    within_call: str = ""
    between_calls: str = ""
    is_name_first: bool = True
    drops_thoughts: bool = False
    """Whether thoughts of earlier answers are left out."""

    refuses_system: bool = False


def rendered(
    tokenizer: "PreTrainedTokenizerBase",
    messages: list[JsonObject],
    tools: list[JsonObject] | None,
    think: bool | None = None,
) -> str:
    """A chat with the generation prompt behind it.

    Raises:
        DataError: the template refuses it.
    """
    variables = {} if think is None else {"enable_thinking": think}
    with limits(WHERE):
        return render_prompt(tokenizer, Conversation(messages, tools, WHERE), variables)


def without_prompt(tokenizer: "PreTrainedTokenizerBase", messages: list[JsonObject], tools: list[JsonObject] | None) -> str:
    """A chat without the generation prompt."""
    from hub.data.tokens.chat_template import chat_template

    with limits(WHERE):
        return chat_template(tokenizer, tools).render(tokenizer, messages, tools, WHERE)


def probe(tokenizer: "PreTrainedTokenizerBase", with_tools: bool = True) -> Found:
    """Read off how a tokenizer's chat template writes chats.

    Args:
        tokenizer: must have a chat template.
        with_tools: whether to ask for tools, too.

    Raises:
        DataError: the template refuses a single question.
        UnknownFormError: a text can't be found in a rendering, or tools are written in an unknown way.
    """
    found = Found()
    rendered(tokenizer, Chat((USER,)).messages(), None)
    try:
        rendered(tokenizer, Chat((USER,), system=True).messages(), None)
    except DataError:
        found.refuses_system = True
    for chat in [*plain_chats(), *(chats_with_tools() if with_tools else ())]:
        tools = PROBED_TOOLS if chat.tools else None
        try:
            text = rendered(tokenizer, chat.messages(), tools, chat.think)
        except DataError:
            continue
        found.joints += _joints(found, chat, text)
    _find_ends(tokenizer, found)
    _find_cuts(tokenizer, found)
    _find_thoughts(tokenizer, found)
    return found


def _joints(found: Found, chat: Chat, text: str) -> Iterator[Joint]:
    """Cut a rendering at its texts."""
    text = text.replace(SYSTEM_TEXT, SYSTEM)
    if chat.tools:
        text = _without_tools(found, text)
    for place, kind in enumerate(chat.kinds):
        if kind == CALL:
            text = _without_calls(found, chat, place, text)
            text = text.replace(marker(place), CONTENT)
        text = text.replace(thought(place), THOUGHT)
    users = [place for place, kind in enumerate(chat.kinds) if kind == USER]
    at, before = 0, START
    for place, kind in enumerate((*chat.kinds, END)):
        mark = marker(place) if kind not in (CALL, END) else CALLS if kind == CALL else None
        end = len(text) if mark is None else text.find(mark, at)
        if end < 0 or (mark not in (None, CALLS) and text.count(mark or "") > 1):
            raise UnknownFormError(f"leaves out or repeats the text of a message ({kind})")
        joint = text[at:end]
        if "zq" in joint:
            raise UnknownFormError("changes the order of messages, or writes names and ids of calls in an unknown way")
        seen = {
            "before": before,
            "system": chat.system,
            "tools": chat.tools,
            "first_user": place == users[0],
            "last_user": place == users[-1],
            "after": place > users[-1],
            "is_last": place == len(chat.kinds) - 1,
            "first_tool": TOOL in chat.kinds and place == chat.kinds.index(TOOL),
            "results": TOOL in chat.kinds[max((one for one in users if one < place), default=0) : place],
            "content": chat.with_content and kind == CALL,
            "thinking": chat.thoughts and kind in (ASSISTANT, CALL),
            "on": chat.think is True,
            "off": chat.think is False,
        }
        yield Joint(joint, before, kind, seen)
        at, before = end + len(mark or ""), kind


def _without_tools(found: Found, text: str) -> str:
    """A rendering where one character stands for the tools."""
    for form, function_only, depth in product(FORMS, (False, True), (0, 1)):
        given: list[Any] = [one["function"] if function_only else one for one in PROBED_TOOLS]
        inner = "\n" + " " * ((form.indent or 0) * depth)
        first, second = (form.write(one).replace("\n", inner) for one in given)
        begin, end = text.find(first), text.find(second)
        if 0 <= begin < end:
            between = text[begin + len(first) : end]
            found.tool_form, found.is_function_only, found.tool_depth, found.between_tools = form, function_only, depth, between
            text = text.replace(first + between + second, TOOLS)
            break
    if "zqtool" in text:
        raise UnknownFormError("writes tools in a way that is not known here")
    return text


def _without_calls(found: Found, chat: Chat, place: int, text: str) -> str:
    """A rendering where one character stands for the calls of a message."""
    spans = []
    for number in range(chat.num_calls):
        name = name_of_call(place, number)
        at = text.find(name)
        for form in [found.call_form] if found.call_form else FORMS:
            arguments = form.write(arguments_of_call(place, number))
            there = text.find(arguments)
            if there >= 0:
                found.call_form = form
                break
        if at < 0 and there < 0:
            raise UnknownFormError("leaves out calls of tools")
        if at < 0 or there < 0:
            raise UnknownFormError("writes calls of tools in a way that is not known here")
        found.is_name_first = at < there
        begin, end = (at + len(name), there) if at < there else (there + len(arguments), at)
        found.within_call = text[begin:end]
        spans.append((min(at, there), max(at + len(name), there + len(arguments))))
    if len(spans) > 1:
        found.between_calls = text[spans[0][1] : spans[1][0]]
    return text[: spans[0][0]] + CALLS + text[spans[-1][1] :]


def _find_ends(tokenizer: "PreTrainedTokenizerBase", found: Found) -> None:
    """What ends a message: what stands behind its text in every rendering, the one without a generation prompt included."""
    for kind in (USER, ASSISTANT, CALL, TOOL):
        behind = [joint.text for joint in found.joints if joint.before == kind]
        kinds = {USER: (USER,), ASSISTANT: (USER, ASSISTANT), CALL: (USER, CALL), TOOL: (USER, CALL, TOOL)}[kind]
        chat = Chat(kinds, tools=kind in (CALL, TOOL))
        if not behind:
            continue
        try:
            text = without_prompt(tokenizer, chat.messages(), PROBED_TOOLS if chat.tools else None)
        except DataError:
            text = ""
        if kind == CALL and text:
            text = _without_calls(found, chat, len(kinds) - 1, text)
        mark = CALLS if kind == CALL else marker(len(kinds) - 1)
        tails = [text.rpartition(mark)[2]] if mark in text else []
        found.ends[kind] = _common(tokenizer, [*tails, *behind])


def _common(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> str:
    common, *others = dict.fromkeys(texts)
    for text in others:
        common = common[: agreement(tokenizer, common, text)]
        while not text.startswith(common):  # whitespace counts as equal there
            common = common[:-1]
    return common


def _find_cuts(tokenizer: "PreTrainedTokenizerBase", found: Found) -> None:
    """Which whitespace is cut off texts, and which texts become JSON."""
    turns = Chat((USER, ASSISTANT, USER), system=not found.refuses_system)
    calls = Chat((USER, CALL, TOOL), tools=True)
    for chat, kind, tools in [
        (turns, "system", None),
        (turns, USER, None),
        (turns, ASSISTANT, None),
        *([(calls, TOOL, PROBED_TOOLS)] if TOOL in found.ends else []),
    ]:
        messages = chat.messages()
        place = next((number for number, one in enumerate(messages) if one["role"] == kind), None)
        if place is None:
            continue
        text = str(messages[place]["content"])
        try:
            clean = rendered(tokenizer, messages, tools)
            messages[place] |= {"content": _SPACES + text + _SPACES[::-1]}
            spaced = rendered(tokenizer, messages, tools)
        except DataError:
            continue
        head, _, tail = clean.partition(text)
        body = spaced[len(head) : len(spaced) - len(tail)]
        if body == json.dumps(_SPACES + text + _SPACES[::-1])[1:-1]:
            found.as_json.add(kind)
        elif spaced.startswith(head) and spaced.endswith(tail):
            left, _, right = body.partition(text)
            found.cuts[kind] = _cut(left, _SPACES), _cut(right[::-1], _SPACES)


def _cut(left: str, whole: str) -> str:
    """What was cut, from what is left of a line break and a space."""
    return "" if left == whole else "\n" if left == whole[1:] else " \t\r\n"


def _find_thoughts(tokenizer: "PreTrainedTokenizerBase", found: Found) -> None:
    """Whether thoughts of an earlier answer are left out."""
    messages = Chat((USER, ASSISTANT, USER)).messages()
    messages[1] |= {"content": f"<think>\n{thought(1)}\n</think>\n\n{marker(1)}"}
    try:
        text = rendered(tokenizer, messages, None)
    except DataError:
        return
    found.drops_thoughts = thought(1) not in text and marker(1) in text
