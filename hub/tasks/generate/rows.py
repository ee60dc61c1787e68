"""The prompts in data files: rows in any format that training reads, of which the answer to be given is left out."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice

from hub.config.data import DataConfig
from hub.config.option import AUTO
from hub.data.formats.columns import renamed
from hub.data.formats.detect import convert, detect
from hub.data.formats.examples import Conversation, Document, Example, ExampleGroup, RowExample
from hub.data.formats.messages import called_functions
from hub.data.json_values import JsonObject, JsonValue, json_if_text, kind_of
from hub.data.sources.entries import Cursor, Entry, Row
from hub.data.sources.read import rows_after
from hub.errors import ConfigError, DataError

_ANSWER = "?"
"""Stands for an answer that a row lacks, so that the row has the form of training data."""


@dataclass(frozen=True)
class Question:
    """What a row asks."""

    number: int
    """Of the row, from 1."""

    where: str
    """File and line, for messages."""

    id: JsonValue = None
    """The field `id` of the row."""

    messages: tuple[JsonObject, ...] = ()
    """The conversation up to the answer. Empty: `text` or `ids` is continued."""

    tools: tuple[JsonObject, ...] = ()
    text: str = ""
    ids: tuple[int, ...] = ()
    reference: str | None = None
    """The answer that the row has."""

    def shown(self) -> JsonObject:
        """The fields of an answer that say what was asked."""
        if self.ids:
            return {"input_ids": list(self.ids)}
        if not self.messages:
            return {"prompt": self.text}
        single = len(self.messages) == 1 and not self.tools
        if single and set(self.messages[0]) == {"role", "content"}:
            return {"prompt": self.messages[0]["content"]}
        shown: JsonObject = {"messages": list(self.messages)}
        return shown | {"tools": list(self.tools)} if self.tools else shown


def with_system(question: Question, system: str | None) -> Question:
    """A question with a system message in front, unless it has one or is a text to be continued."""
    if not system or not question.messages or question.messages[0]["role"] == "system":
        return question
    return replace(question, messages=({"role": "system", "content": system}, *question.messages))


def questions(data: DataConfig, of_run: DataConfig | None, bad: list[str]) -> Iterator[Question]:
    """Yield the question of each row of `data.path`.

    Args:
        data: path, format, columns and what happens to bad rows.
        of_run: the data options of the run that made the model: their columns and format are taken for a row that has them.
        bad: gets a line for each row that is left out, with data.on_bad_row=skip.

    Raises:
        ConfigError: `data.mix` is set.
        DataError: nothing is there, the file is empty, or a row can't be used.
    """
    if data.mix:
        raise ConfigError("data.mix: hub generate reads one source. Type data.path=FILE")
    entries = rows_after(data.path, Cursor(), data.subset, data.split, stream=False)
    number = 0
    for number, (entry, _) in enumerate(entries, 1):
        try:
            yield _question(number, entry, data, of_run)
        except DataError as error:
            if data.on_bad_row == "error":
                raise
            bad.append(str(error))
    if not number:
        raise DataError(f"{data.path}: there is no prompt in it. Give a file with at least one row")


def check_first(data: DataConfig, of_run: DataConfig | None, limit: int = 20_000) -> None:
    """Read the first rows, to find mistakes before a model is loaded.

    Raises:
        ConfigError: see `questions`.
        DataError: see `questions`, or none of the rows can be used.
    """
    bad: list[str] = []
    good = sum(1 for _ in islice(questions(data, of_run, bad), limit))
    if not good:
        raise DataError(f"{data.path}: none of its rows can be used. The first: {bad[0]}")


def _question(number: int, entry: Entry, data: DataConfig, of_run: DataConfig | None) -> Question:
    raw = entry.read()
    row = renamed(raw, _columns(raw, data, of_run))
    example = _example(row, data, of_run)
    if isinstance(example, ExampleGroup):
        example = next(iter(example.examples.values()))
    question = Question(number, raw.where, raw.value.get("id"))
    return _asked(question, example, row)


def _columns(row: Row, data: DataConfig, of_run: DataConfig | None) -> Mapping[str, str]:
    if data.columns or of_run is None:
        return data.columns
    return {name: column for name, column in of_run.columns.items() if column in row.value}


def _example(row: Row, data: DataConfig, of_run: DataConfig | None) -> RowExample:
    """What a row is, as for training."""
    if data.text_column is not None:
        return convert(row, "document", data.text_column)
    if data.format != AUTO:
        return convert(_completed(row), data.format)
    try:
        completed = _completed(row)
        format = detect(completed)
    except DataError:
        if of_run is not None and of_run.text_column in row.value:
            return convert(row, "document", of_run.text_column)
        if of_run is not None and of_run.format != AUTO:
            return convert(row, of_run.format)
        if "prompt" in row.value and not isinstance(row.value["prompt"], str | list):
            raise DataError(f"{row.where}: prompt is {kind_of(row.value['prompt'])}. Give a text or messages") from None
        raise
    return convert(completed, "chosen" if format == "preference" else format)


def _completed(row: Row) -> Row:
    """The row with an answer, if it ends with a question."""
    value = dict(row.value)
    if isinstance(value.get("prompt"), str | list) and _lacks(value.get("completion")) and value.get("chosen") is None:
        value["completion"] = _ANSWER
        value.pop("chosen", None)
    elif value.get("instruction") is not None and _lacks(value.get("output")):
        value["output"] = _ANSWER
    for name, role, content in (("messages", "role", "content"), ("conversations", "from", "value")):
        turns = json_if_text(value.get(name), row.where, name) if value.get(name) is not None else None
        if isinstance(turns, list) and turns and isinstance(turns[-1], dict):
            speaker = turns[-1].get(role, turns[-1].get("role"))
            if speaker not in ("assistant", "gpt", "model", "function_call", "tool_call"):
                value[name] = [*turns, {role: "assistant" if role == "role" else "gpt", content: _ANSWER}]
    return Row(value, row.file, row.line) if value != row.value else row


def _lacks(answer: JsonValue) -> bool:
    """Whether there is no answer, or an empty one, as in the columns of a test set."""
    return answer is None or answer == [] or (isinstance(answer, str) and not answer.strip())


def _asked(question: Question, example: Example, row: Row) -> Question:
    if isinstance(example, Document):
        return replace(question, text=example.text)
    if not isinstance(example, Conversation):
        first = example.loss_mask.index(True) if True in example.loss_mask else len(example.input_ids)
        return replace(question, ids=tuple(example.input_ids[:first] or example.input_ids))
    messages = list(example.messages)
    answer = messages.pop() if messages[-1]["role"] == "assistant" else None
    if not messages or all(message["role"] == "system" for message in messages):
        raise DataError(f"{question.where}: this conversation has no question before its answer. Add one, or take the row out")
    reference = None
    if answer is not None and example is not None and _has_answer(row):
        reference = str(answer["content"]) or ", ".join(called_functions(answer))
    return replace(question, messages=tuple(messages), tools=tuple(example.tools or ()), reference=reference)


def _has_answer(row: Row) -> bool:
    """Whether the row itself has an answer, and not `_completed` alone."""
    return row is _completed(row)
