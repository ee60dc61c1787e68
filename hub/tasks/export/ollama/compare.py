"""Compares prompts of Ollama with those of training: sample chats that no probe has seen, token by token."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hub.data.json_values import JsonObject
from hub.errors import DataError, ModelError
from hub.tasks.export.ollama.go_template import GoTemplate
from hub.tasks.export.ollama.probe import rendered
from hub.tasks.export.ollama.values import READ_BY_TEMPLATES, values

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN, TOOLS, THINKING, EDGE = "plain", "tools", "thinking", "edge"
"""What a sample is about. A prompt of `edge` that differs is logged, and refuses nothing: such texts are rare."""

_SHOWN = 40


@dataclass(frozen=True)
class Sample:
    """A chat on which prompts are compared."""

    name: str
    about: str
    messages: list[JsonObject]
    tools: list[JsonObject] | None = None
    think: bool | None = None


@dataclass(frozen=True)
class Difference:
    """A chat whose prompts differ."""

    sample: Sample
    line: str


def user(text: str) -> JsonObject:
    """A question."""
    return {"role": "user", "content": text}


def answer(text: str, **more: Any) -> JsonObject:
    """An answer."""
    return {"role": "assistant", "content": text, **more}


def system(text: str) -> JsonObject:
    """A system prompt."""
    return {"role": "system", "content": text}


def call(number: int, name: str, **arguments: Any) -> JsonObject:
    """A call of a tool."""
    return {"type": "function", "id": f"call{number:05d}", "function": {"name": name, "arguments": arguments}}


def result(text: str, name: str, number: int = 1) -> JsonObject:
    """What a tool gave back."""
    return {"role": "tool", "content": text, "name": name, "tool_call_id": f"call{number:05d}"}


def tool(name: str, description: str, required: list[str], **properties: JsonObject) -> JsonObject:
    """The JSON schema of a tool."""
    parameters: JsonObject = {"type": "object", "properties": dict(properties)}
    if required:
        parameters["required"] = list(required)
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


WEATHER = tool(
    "get_weather",
    "The weather in a town, in °C.",
    ["town"],
    town={"type": "string", "description": "Name of the town"},
    unit={"type": "string", "description": "Unit", "enum": ["C", "F"]},
)
TIME = tool("get_time", "The time.", [], zone={"type": "string", "description": "Time zone"})
DEEP = tool("find", "Finds all.", ["words"], words={"type": "array", "items": {"type": "string"}, "description": "Words"})
ASK, PARIS = user("How warm is it in Paris?"), call(1, "get_weather", town="Paris", unit="C")


def samples() -> Iterator[Sample]:
    """The chats on which prompts are compared."""
    several = [user("Name a color."), answer("Blue."), user("Another one, and why?\n\nBe brief.")]
    longer = [*several, answer("Red: it is warm."), user("And a third?"), answer("Green."), user("Thanks! Which did you name?")]
    brief = system("Answer in one word.")
    yield Sample("a question", PLAIN, [user("Name a color.")])
    yield Sample("a question behind a system prompt", PLAIN, [brief, user("Name a color.")])
    yield Sample("a chat of two turns", PLAIN, several)
    yield Sample("a chat of four turns", PLAIN, longer)
    yield Sample("a chat of two turns behind a system prompt", PLAIN, [brief, *several])
    yield Sample("a chat of four turns behind a system prompt", PLAIN, [system("Be kind.\nBe brief."), *longer])
    signs = user("Ein Satz — 你好 🙂 <b>&amp;</b> {{x}} \"q\" 'a'")
    yield Sample("a chat in many scripts", PLAIN, [system("Grüße 世界"), signs, *longer[1:3]])
    spaced = [system(" Be kind. "), user("  Hi \n"), answer("\n Hello  "), user("\tBye\n\n")]
    yield Sample("texts with spaces around them", PLAIN, spaced)
    yield Sample("an empty answer", EDGE, [user("Hi"), answer(""), user("Say something.")])
    yield Sample("an empty system prompt", EDGE, [system(""), user("Hi")])
    both = [WEATHER, TIME]
    for name, head in [("", []), (" behind a system prompt", [brief])]:
        asked = [*head, ASK, answer("", tool_calls=[PARIS]), result('{"degrees": 21}', "get_weather")]
        yield Sample(f"a question with a tool{name}", TOOLS, [*head, ASK], [WEATHER])
        yield Sample(f"a question with two tools{name}", TOOLS, [*head, ASK], both)
        yield Sample(f"a chat with tools{name}", TOOLS, [*head, *longer], both)
        yield Sample(f"a call of a tool and its result{name}", TOOLS, asked, both)
        yield Sample(f"a chat behind a call{name}", TOOLS, [*asked, answer("It is 21 °C."), user("And now?")], both)
        more = [answer("", tool_calls=[call(2, "get_time", zone="CET")]), result("12:00", "get_time", 2)]
        yield Sample(f"two calls, one after the other{name}", TOOLS, [*asked, *more], both)
        turns = [*asked, answer("It is 21 °C."), user("And the time?"), *more]
        yield Sample(f"calls in two turns{name}", TOOLS, turns, both)
    yield Sample("texts with spaces around them, and tools", EDGE, spaced, both)
    yield Sample("spaces around the first text, and tools", EDGE, spaced[1:], both)
    yield Sample("a call with a text", TOOLS, [ASK, answer("I look.", tool_calls=[PARIS]), result("21", "get_weather")], both)
    found = answer("", tool_calls=[call(3, "find", options={"near": True, "size": [1, 2.5]}, words=["a", "b"])])
    yield Sample("a tool and a call with lists", EDGE, [ASK, found, result("[]", "find", 3)], [DEEP])
    two = answer("", tool_calls=[PARIS, call(2, "get_time", zone="CET")])
    yield Sample("two calls at once", TOOLS, [ASK, two, result("21", "get_weather"), result("12:00", "get_time", 2)], both)
    thought: Any = dict.fromkeys(READ_BY_TEMPLATES, "A color.\nSo blue.")
    yield Sample("thoughts of an earlier answer", THINKING, [several[0], answer("Blue.", **thought), several[2]])
    yield Sample("thinking is asked for", THINKING, several, think=True)
    yield Sample("no thinking is asked for", THINKING, several, think=False)
    called = answer("", tool_calls=[PARIS], **thought)
    yield Sample("thoughts before a call", TOOLS, [ASK, called, result("21", "get_weather")], both)


def differences(
    template: str, tokenizer: "PreTrainedTokenizerBase", bos: str, rendered_before: Mapping[str, str]
) -> Iterator[Difference]:
    """Yield a line for each sample chat whose prompt in Ollama has other token ids than the tokenizer's own.

    Args:
        template: in Go's language.
        tokenizer: of the model.
        bos: what the program puts before each prompt by itself.
        rendered_before: of `references`.
    """
    parsed = GoTemplate(template)
    for sample in samples():
        own = rendered_before.get(sample.name)
        if own is None:
            continue
        try:
            theirs = bos + parsed.render(values(sample.messages, sample.tools, sample.think))
        except ModelError as error:
            yield Difference(sample, f"{sample.name}: {error}")
            continue
        if theirs == own:
            continue
        ids, own_ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (theirs, own))
        if ids != own_ids:
            place = next((i for i, (a, b) in enumerate(zip(theirs, own, strict=False)) if a != b), min(len(theirs), len(own)))
            begin = max(0, place - 10)
            yield Difference(
                sample,
                f"{sample.name}: {theirs[begin : begin + _SHOWN]!r} in Ollama, {own[begin : begin + _SHOWN]!r} in training",
            )


def references(tokenizer: "PreTrainedTokenizerBase") -> dict[str, str]:
    """The sample chats as the chat template renders them. Those that it refuses are left out."""
    found = {}
    for sample in samples():
        try:
            found[sample.name] = rendered(tokenizer, sample.messages, sample.tools, sample.think)
        except DataError:
            continue
    return found
