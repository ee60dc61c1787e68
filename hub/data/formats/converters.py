"""From the fields of a row to what is trained on, a function for each format. Every error is one line with its place."""

import json
import re
from contextlib import suppress

from hub.data.formats.examples import Conversation, Document, Tokens
from hub.data.formats.messages import KNOWN_FIELDS, called_functions, check_messages, message_list
from hub.data.json_values import (
    DECODER,
    WRITE_JSON,
    JsonObject,
    JsonValue,
    has_half_character,
    is_of_python,
    json_if_text,
    kind_of,
    listed,
)
from hub.data.sources.entries import Row
from hub.errors import DataError, did_you_mean

BESIDE = ("tools", "unmask")
"""Fields of a row beside its messages."""

_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "function_call": "function_call",
    "tool": "tool",
    "observation": "tool",
}
_HUMAN, _ANSWER = "\n\nHuman:", "\n\nAssistant:"
_MESSAGES = re.compile(r"\s*\[\s*\{\s*['\"](?:role|content)['\"]\s*:")
"""How a list of messages begins as text."""

IGNORED_LABEL = -100
LOSS_MASKS = ("completion_mask", "assistant_masks", "assistant_mask", "assistant_tokens_mask", "loss_mask")
"""Beside input_ids: 1 where a token has loss. Of several, a token must have 1 in each (as in TRL)."""

_MASKS_OF_TEXTS = ("special_tokens_mask", "global_attention_mask")
"""Masks that tokenizers give, and that say nothing about the loss."""

SCORED = ("completions", "responses", "scores", "ratings")
"""Fields of rows with several answers and their scores."""

OPTIONAL = (*BESIDE, "system", "input", "history", "prompt", "labels", "attention_mask", *LOSS_MASKS, *SCORED)
"""Fields that some format reads where a row has them."""


def conversation(
    row: Row,
    format: str,
    messages: list[JsonObject],
    optional: tuple[str, ...] = (),
    known: tuple[str, ...] = (),
    completion: int | None = None,
) -> Conversation:
    """Check messages and the fields beside them: tools, unmask, those that nothing reads.

    Args:
        row: where the fields beside the messages are.
        format: the name of its format.
        messages: as they were read.
        optional: fields of `BESIDE` that this format has.
        known: its other fields.
        completion: the first message of the completion. None: the row has none.

    Raises:
        DataError: it can't be trained on.
    """
    unused = [name for name, value in row.value.items() if name not in (*known, *optional) and value is not None]
    unused += sorted({f"messages[].{name}" for message in messages for name in message if name not in KNOWN_FIELDS})
    checked, without_loss = check_messages(messages, row.where)
    tools = _tools(row) if "tools" in optional else None
    if tools:
        _check_calls(checked, tools, row.where)
    _check_json(checked, tools, row.where)
    unmask = _unmask(row) if "unmask" in optional else False
    return Conversation(checked, tools, row.where, format, tuple(unused), without_loss, unmask, completion)


def _unmask(row: Row) -> bool:
    """The field unmask, which is text in a CSV file."""
    value = row.value.get("unmask")
    if isinstance(value, str):
        value = {"": False, "true": True, "false": False}.get(value.strip().lower(), value)
    if value not in (None, False, True):
        raise DataError(f"{row.where}: unmask is {kind_of(value)}. Allowed: true or false")
    return bool(value)


def with_system(messages: list[JsonObject], row: Row) -> list[JsonObject]:
    """The messages behind the one in the field system.

    Raises:
        DataError: there is another system message.
    """
    system = row.value.get("system")
    if system in (None, ""):
        return messages
    if messages and messages[0].get("role") == "system":
        raise DataError(f"{row.where}: the field system and a message of the role system are both there. Give one of them")
    return [{"role": "system", "content": system}, *messages]


def from_messages(row: Row, format: str) -> Conversation:
    """A list of messages with role and content.

    Raises:
        DataError: it can't be trained on.
    """
    messages = with_system(message_list(row.value["messages"], row.where, "messages"), row)
    return conversation(row, format, messages, BESIDE, ("messages", "system"))


def from_sharegpt(row: Row, format: str) -> Conversation:
    """A list of turns with from and value.

    Raises:
        DataError: it can't be trained on.
    """
    messages: list[JsonObject] = []
    for number, turn in enumerate(message_list(row.value["conversations"], row.where, "conversations"), 1):
        if "from" not in turn and "role" in turn:
            messages.append(turn | {"role": _SHAREGPT_ROLES.get(str(turn["role"]), turn["role"])})
            continue
        if "from" not in turn or "value" not in turn:
            raise DataError(f"{row.where}: message {number} needs the fields from and value. Its fields: {listed(turn)}")
        speaker, value = turn["from"], turn["value"]
        if not isinstance(speaker, str) or speaker not in _SHAREGPT_ROLES:
            raise DataError(
                f"{row.where}: message {number} is from {speaker!r}. Allowed: {', '.join(_SHAREGPT_ROLES)}."
                f"{did_you_mean(str(speaker), _SHAREGPT_ROLES)}"
            )
        message = {key: item for key, item in turn.items() if key not in ("from", "value")}
        message |= {"role": _SHAREGPT_ROLES[speaker], "content": value}
        messages.append(message)
    return conversation(row, format, with_system(messages, row), BESIDE, ("conversations", "system"))


def from_alpaca(row: Row, format: str) -> Conversation:
    """An instruction, perhaps with input, system and history, and its output.

    Raises:
        DataError: it can't be trained on.
    """
    value = row.value
    messages = with_system([], row)
    history = json_if_text(value.get("history") or [], row.where, "history")
    if not isinstance(history, list) or any(not isinstance(pair, list) or len(pair) != 2 for pair in history):
        raise DataError(f"{row.where}: history must be a list of pairs [instruction, answer]")
    for asked, answered in history:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    asked, context = value["instruction"], value.get("input")
    if context and isinstance(asked, str):
        if not isinstance(context, str):
            raise DataError(f"{row.where}: input must be a text, not {kind_of(context)}")
        asked = f"{asked}\n\n{context}" if asked else context
    messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": value["output"]}]
    known = ("instruction", "output", "input", "system", "history")
    return conversation(row, format, messages, (), known, len(messages) - 1)


def from_prompt_completion(row: Row, format: str) -> Conversation:
    """A prompt and its completion.

    Raises:
        DataError: it can't be trained on.
    """
    prompt = with_system(as_messages(row.value["prompt"], "user", row.where, "prompt"), row)
    completion = as_messages(row.value["completion"], "assistant", row.where, "completion")
    return conversation(row, format, prompt + completion, ("tools",), ("prompt", "completion", "system"), len(prompt))


def as_messages(value: JsonValue, role: str, where: str, name: str) -> list[JsonObject]:
    """A text as one message, or a list of messages, which CSV has as JSON text.

    Raises:
        DataError: it is neither.
    """
    if isinstance(value, str) and _MESSAGES.match(value):
        if is_of_python(value):
            raise DataError(f"{where}: {name} is a list of messages that is no JSON: {value[:80]}. {WRITE_JSON}")
        with suppress(ValueError, RecursionError):
            parsed = DECODER.decode(value)
            value = parsed if all(isinstance(turn, dict) and "role" in turn for turn in parsed) else value
    return message_list(value, where, name) if isinstance(value, list) else [{"role": role, "content": value}]


def from_chosen(row: Row, format: str) -> Conversation:
    """The prompt and the chosen answer of a row of preferences.

    Raises:
        DataError: it can't be trained on.
    """
    known = ("prompt", "chosen", "rejected", "system")
    prompt, chosen = row.value.get("prompt"), row.value["chosen"]
    prompt = None if prompt == "" else prompt  # an empty cell
    answer = as_messages(chosen, "assistant", row.where, "chosen")
    if prompt is None and isinstance(chosen, str) and len(answer) == 1:
        messages = with_system(transcript(chosen, row.where), row)
        return conversation(row, format, messages, ("tools",), known, len(messages) - 1)
    before = [] if prompt is None else as_messages(prompt, "user", row.where, "prompt")
    if len(answer) > 1 and before and answer[0].get("role") != "assistant":
        before = []  # the chosen conversation begins with the prompt
    messages = with_system(before + answer, row)
    completion = len(messages) - len(answer) if before else max(len(messages) - 1, 0)
    return conversation(row, format, messages, ("tools",), known, completion)


def transcript(text: str, where: str, name: str = "chosen") -> list[JsonObject]:
    """A conversation in one text, as some preference datasets have it: turns that begin with Human: and Assistant:.

    Raises:
        DataError: the text is not of this form.
    """
    if not text.startswith(_HUMAN) or _ANSWER not in text:
        raise DataError(f"{where}: {name} without a prompt must be a list of messages, or a text that begins with {_HUMAN!r}")
    messages: list[JsonObject] = []
    for exchange in text.split(_HUMAN)[1:]:
        asked, *answers = exchange.split(_ANSWER)
        messages.append({"role": "user", "content": asked.strip()})
        messages += [{"role": "assistant", "content": answer.strip()} for answer in answers]
    return messages


def from_tokens(row: Row, format: str) -> Tokens:
    """Token ids, and labels for those with loss.

    Raises:
        DataError: it can't be trained on.
    """
    known = ("input_ids", "labels", "attention_mask", *LOSS_MASKS)
    ids = _whole_numbers(row, "input_ids") or []
    if not ids or min(ids) < 0:
        raise DataError(f"{row.where}: input_ids {f'has {min(ids)}, and a token id is never below 0' if ids else 'is empty'}")
    labels, attention = _whole_numbers(row, "labels"), _whole_numbers(row, "attention_mask")
    for name, values in (("labels", labels), ("attention_mask", attention)):
        if values is not None and len(values) != len(ids):
            raise DataError(f"{row.where}: {name} has {len(values)} numbers, input_ids has {len(ids)}")
    if attention is not None and set(attention) != {1}:
        raise DataError(f"{row.where}: attention_mask must be 1 everywhere: leave padding out")
    for place, (number, label) in enumerate(zip(ids, labels if labels is not None else ids, strict=True)):
        if label not in (number, IGNORED_LABEL):
            raise DataError(
                f"{row.where}: labels[{place}] is {label}, input_ids[{place}] is {number}. A label is the token at its own "
                f"place, or {IGNORED_LABEL} for no loss; the hub does the shift"
            )
    mask = [True] * len(ids) if labels is None else [label != IGNORED_LABEL for label in labels]
    for name in LOSS_MASKS:
        if (marks := _mask(row, name, len(ids))) is not None:
            mask = [has_loss and mark for has_loss, mark in zip(mask, marks, strict=True)]
    _refuse_other_masks(row)
    unused = tuple(name for name, value in row.value.items() if name not in known and value is not None)
    return Tokens(ids, mask, row.where, format, unused)


def _mask(row: Row, name: str, size: int) -> list[bool] | None:
    """A mask of the tokens with loss. None: the row lacks it."""
    values = row.value.get(name)
    values = None if values == "" else json_if_text(values, row.where, name)  # in CSV a cell may be empty
    if values is None:
        return None
    if not isinstance(values, list) or any(not isinstance(value, int) or value not in (0, 1) for value in values):
        raise DataError(f"{row.where}: {name} must be a list of 0 and 1, where 1 is a token with loss")
    if len(values) != size:
        raise DataError(f"{row.where}: {name} has {len(values)} numbers, input_ids has {size}")
    return [bool(value) for value in values]


def _refuse_other_masks(row: Row) -> None:
    """Refuse a mask beside input_ids that the hub does not know: it says what is trained, perhaps."""
    for name, value in row.value.items():
        if "mask" in name.lower() and name not in (*LOSS_MASKS, "attention_mask", *_MASKS_OF_TEXTS) and value is not None:
            raise DataError(
                f"{row.where}: {name} is a mask that nothing reads. Allowed: labels ({IGNORED_LABEL} for no loss), "
                f"{', '.join(LOSS_MASKS)} (1 for loss). Rename it, or take it out"
            )


def _whole_numbers(row: Row, name: str) -> list[int] | None:
    """The numbers in a field, which may be JSON text. None: the row lacks the field, and may."""
    value = row.value.get(name)
    value = None if value == "" else json_if_text(value, row.where, name)  # in CSV a cell may be empty
    if value is None and name != "input_ids":
        return None
    if not isinstance(value, list) or any(type(number) is not int for number in value):
        raise DataError(f"{row.where}: {name} must be a list of whole numbers")
    return value


def from_document(row: Row, column: str) -> Document:
    """A text that is trained as a whole.

    Raises:
        DataError: it can't be trained on.
    """
    if column not in row.value:
        near = did_you_mean(column, row.value)
        raise DataError(f"{row.where}: this row has no column {column}. Its fields: {listed(row.value)}.{near}")
    text = row.value[column]
    if not isinstance(text, str) or not text.strip():
        what = "is empty" if isinstance(text, str) else f"must be a text, not {kind_of(text)}"
        raise DataError(f"{row.where}: {column} {what}. Give a text, or take the row out")
    if has_half_character(text):
        raise DataError(f"{row.where}: {column} holds half a character (a lone surrogate, as \\ud83d). Take the row out")
    unused = tuple(name for name, value in row.value.items() if name != column and value is not None)
    return Document(text, row.where, unused=unused)


def _tools(row: Row) -> list[JsonObject] | None:
    value = row.value.get("tools")
    if value is None or value == "":
        return None
    tools = json_if_text(value, row.where, "tools")
    if not isinstance(tools, list) or any(not isinstance(tool, dict) for tool in tools):
        raise DataError(f"{row.where}: tools must be a list of objects (JSON schemas of functions)")
    return tools or None


def _check_json(messages: list[JsonObject], tools: list[JsonObject] | None, where: str) -> None:
    """Refuse what no JSON has within calls and schemas: Arrow's readers take a text like 2026-01-01 for a time."""
    named: list[tuple[str, JsonValue]] = [("tools", tools)] if tools else []
    for number, message in enumerate(messages, 1):
        if calls := message.get("tool_calls"):
            named.append((f"tool_calls of message {number}", calls))
    for name, value in named:
        found: list[JsonValue] = []
        try:
            json.dumps(value, default=found.append, allow_nan=False)
        except ValueError:
            raise DataError(
                f"{where}: {name} has a number that is NaN or infinite, which JSON has not. Give null or a text, or "
                "leave it out"
            ) from None
        if found:
            raise DataError(
                f"{where}: {name} has {kind_of(found[0])} ({str(found[0])[:80]}), which JSON has not. The library that wrote "
                "the file took a text for it. Write the rows as JSONL, or this field as JSON text"
            )


def _check_calls(messages: list[JsonObject], tools: list[JsonObject], where: str) -> None:
    """Refuse calls of tools that the row does not have: a model that learns them invents tools."""
    functions = [tool.get("function", tool) for tool in tools]
    names = {function.get("name") for function in functions if isinstance(function, dict)}
    for number, message in enumerate(messages, 1):
        for name in called_functions(message):
            if name not in names:
                near = did_you_mean(name, [known for known in names if isinstance(known, str)])
                raise DataError(f"{where}: message {number} calls {name}, which is not among the tools of the row.{near}")
