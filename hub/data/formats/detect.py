"""The formats of rows, each turned into what is trained on: a conversation, a document, or tokens.

messages           {"messages": [{"role": "user", "content": "..."}, ...], "system": "...", "tools": [...], "unmask": false}
sharegpt           {"conversations": [{"from": "human", "value": "..."}, ...], "system": "...", "tools": [...]}
alpaca             {"instruction": "...", "input": "...", "output": "...", "system": "...", "history": [["...", "..."]]}
prompt_completion  {"prompt": "...", "completion": "...", "system": "..."}: texts, or lists of messages
tokens             {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}
preference         {"prompt": "...", "chosen": "...", "rejected": "..."}, or a list of answers with scores: two samples
judged             {"prompt": "...", "completion": "...", "label": true}, or a preference. Only where it is asked for
chosen             the same rows, of which the prompt and the chosen answer are a conversation. Only with data.format=chosen
document           {"text": "..."} or {"document": "..."}, or any column that data.text_column names

A plugin adds others, also with several samples a row: see `hub_data_formats` in docs/plugins.md.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from hub.config.paths import file_kind
from hub.data.formats import converters, preferences
from hub.data.formats.examples import Example, ExampleGroup, RowExample, naming_role
from hub.data.json_values import JsonObject, JsonValue, kind_of, listed
from hub.data.sources.entries import Row
from hub.errors import DataError, did_you_mean, one_line
from hub.plugins import registry as plugins
from hub.plugins.offers import SINGLE, DataFormat, Roles


class _Format(NamedTuple):
    required: tuple[str, ...]
    """Fields that tell the format from the others."""

    convert: Callable[[Row, str], RowExample]

    rows: tuple[Roles, ...] = (SINGLE,)
    """The roles of a row's samples. Several: the row tells."""

    detected: bool = True
    """Whether the fields of a row tell it. If not, `data.format` or the algorithm asks for it."""


PREFERENCE = "preference"
_SEVERAL_FORMS = (PREFERENCE, "judged")
_DOCUMENT_FIELDS = ("text", "document")
_FORMATS = {
    "messages": _Format(("messages",), converters.from_messages),
    "sharegpt": _Format(("conversations",), converters.from_sharegpt),
    "alpaca": _Format(("instruction", "output"), converters.from_alpaca),
    "prompt_completion": _Format(("prompt", "completion"), converters.from_prompt_completion),
    "tokens": _Format(("input_ids",), converters.from_tokens),
    PREFERENCE: _Format(preferences.PAIR, preferences.from_preference, (preferences.PAIR,)),
    "judged": _Format(("prompt", "completion", "label"), preferences.from_judged, preferences.JUDGED, detected=False),
    "chosen": _Format(("chosen",), converters.from_chosen, detected=False),
}
_BUG = "This is a bug in its plugin"


def read_fields() -> set[str]:
    """The fields that a format reads, as far as they are known: a plugin's may read more than those that it requires."""
    required = {name for fields in _required_fields().values() for name in fields}
    return {*required, *_DOCUMENT_FIELDS, *converters.OPTIONAL}


def detect(row: Row) -> str:
    """The format of a row, from the names of its fields.

    A plugin's format wins over `preference`, which an algorithm has to ask for.

    Raises:
        DataError: they are those of no format, or of several.
    """
    return _detect(row, _required_fields())


def convert(row: Row, format: str, text_column: str | None = None) -> RowExample:
    """Turn a row into what is trained on, and check it.

    Args:
        row: a row.
        format: its format; not `auto`.
        text_column: the field with the text of a document. None: `text` or `document`.

    Raises:
        DataError: the row is of another format, or can't be trained on.
    """
    if text_column is None and (item := plugins.data_formats().get(format)) is not None:
        _require_fields(row, format, item.fields)
        return _from_plugin(row, item)
    return _from_own(row, format, text_column)


def _required_fields() -> dict[str, tuple[str, ...]]:
    """The fields that a row of each format has; not of `document`."""
    own = {name: spec.required for name, spec in _FORMATS.items()}
    return own | {name: item.fields for name, item in plugins.data_formats().items()}


def _detect(row: Row, known: Mapping[str, tuple[str, ...]]) -> str:
    present = set(row.value)
    # Parquet gives every field to every row, null where a row lacks it: fields with a value count first.
    for names in ({name for name in present if row.value[name] is not None}, present):
        matches = [name for name, required in known.items() if names.issuperset(required) and _is_detected(name)]
        if any(name not in _FORMATS for name in matches):
            matches = [name for name in matches if name != PREFERENCE]
        if len(matches) > 1:
            raise DataError(
                f"{row.where}: these fields are of several formats ({', '.join(matches)}): {listed(row.value)}. "
                f"Type data.format={matches[0]} or another of them"
            )
        if matches:
            return matches[0]
        if any(isinstance(row.value[name], str) for name in _DOCUMENT_FIELDS if name in names):
            return "document"
        if names == {"text"}:
            return "document"  # it says why its text is none
    raise DataError(_unknown(row, known))


def _is_detected(name: str) -> bool:
    return name not in _FORMATS or _FORMATS[name].detected


def rows_of(format: str) -> tuple[Roles, ...]:
    """The roles that a row of a format may have. Empty: a plugin's format, of which only the rows tell."""
    if (item := plugins.data_formats().get(format)) is not None:
        return (item.roles,) if item.roles else ()
    return _FORMATS[format].rows if format in _FORMATS else (SINGLE,)


def formats_of(allowed: Collection[Roles]) -> list[str]:
    """The formats whose rows all have samples of one of these roles."""
    names = [*_FORMATS, *plugins.data_formats()]
    return [name for name in names if (rows := rows_of(name)) and set(rows) <= set(allowed)]


def _unknown(row: Row, known: Mapping[str, tuple[str, ...]]) -> str:
    allowed = "; ".join(f"{name} has {listed(required)}" for name, required in known.items() if _is_detected(name))
    fields = {field for required in known.values() for field in required}
    shape = _hint(row)
    near = next((hint for field in sorted(set(row.value) - fields) if (hint := did_you_mean(field, fields))), "")
    return (
        f"{row.where}: these fields are of no known format: {listed(row.value)}. Allowed: {allowed}; document has text or "
        f"document.{near}{shape} For a column with texts type data.text_column=NAME, for other names of columns e.g. "
        f"data.columns.prompt=NAME data.columns.completion=NAME"
    )


def _hint(row: Row) -> str:
    """What a row may be that is in no format."""
    if {"role", "content"} <= row.value.keys():
        return ' This is a message: a row has a list of them, {"messages": [...]}.'
    lists = [name for name, value in row.value.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if lists:
        return (
            f" If {lists[0]} has the rows, write a file with that list alone. If it has messages, type "
            f"data.columns.messages={lists[0]}."
        )
    if row.line == 2 and file_kind(Path(row.file)) in (".csv", ".tsv"):
        return " The first row of the file must name the columns."
    return ""


def _from_own(row: Row, format: str, text_column: str | None = None) -> RowExample:
    if text_column is not None:
        return converters.from_document(row, text_column)
    if format == "document":
        column = next((name for name in _DOCUMENT_FIELDS if row.value.get(name) is not None), _DOCUMENT_FIELDS[0])
        return converters.from_document(row, column)
    spec = _FORMATS[format]
    if format not in _SEVERAL_FORMS:  # which say themselves what is missing
        _require_fields(row, format, spec.required)
    return spec.convert(row, format)


def _require_fields(row: Row, format: str, required: tuple[str, ...]) -> None:
    if not row.value.keys() >= set(required):
        raise DataError(
            f"{row.where}: this row is not in the format {format}, which has {listed(required)}. "
            f"Its fields: {listed(row.value)}. All rows of a file must be in one format"
        )


def _from_plugin(row: Row, item: DataFormat) -> RowExample:
    try:
        value: JsonValue = item.convert(dict(row.value))
    except ValueError as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{row.where}: {reason}") from None
    except Exception as error:  # any bug of the plugin's author
        raise DataError(f"{row.where}: the format {item.name} failed on this row ({one_line(error)}). {_BUG}") from None
    if not isinstance(value, dict):
        raise DataError(f"{row.where}: the format {item.name} gave {kind_of(value)} instead of an object. {_BUG}")
    if not item.roles:
        return replace(_inner(row, value), format=item.name)
    if set(value) != set(item.roles) or not all(isinstance(fields, dict) for fields in value.values()):
        raise DataError(
            f"{row.where}: the format {item.name} must give an object for each of {', '.join(item.roles)}, but gave "
            f"{', '.join(f'{name}: {kind_of(fields)}' for name, fields in value.items()) or 'none'}. {_BUG}"
        )
    examples = {role: _of_role(row, role, value[role]) for role in item.roles}
    unused = tuple(f"{role}.{name}" for role, example in examples.items() for name in example.unused)
    return ExampleGroup(examples, row.where, item.name, unused)


def _of_role(row: Row, role: str, fields: JsonObject) -> Example:
    """What becomes one of several samples of a row. A message names its role."""
    with naming_role(row.where, role):
        example = _inner(row, fields)
        if isinstance(example, ExampleGroup):
            raise DataError(f"{row.where}: it has several samples itself ({', '.join(example.examples)}). {_BUG}")
        return example


def _inner(row: Row, fields: JsonObject) -> RowExample:
    """What a plugin's `convert` gave. It is in a format of the hub's own, never in another plugin's."""
    inner = Row(fields, row.file, row.line)
    return _from_own(inner, _detect(inner, {name: spec.required for name, spec in _FORMATS.items()}))
