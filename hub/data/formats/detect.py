"""The formats of rows, each turned into what is trained on: a conversation, a document, or tokens.

messages           {"messages": [{"role": "user", "content": "..."}, ...], "tools": [...], "unmask": false}
sharegpt           {"conversations": [{"from": "human", "value": "..."}, ...], "system": "...", "tools": [...]}
alpaca             {"instruction": "...", "input": "...", "output": "...", "system": "...", "history": [["...", "..."]]}
prompt_completion  {"prompt": "...", "completion": "..."}, both texts, or both lists of messages
tokens             {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}
preference         {"prompt": "...", "chosen": "...", "rejected": "..."}: known, but trained on only as `chosen`
chosen             the same rows: the prompt and the chosen answer as a conversation. Only where data.format asks for it
document           {"text": "..."} or {"document": "..."}, or any column that data.text_column names

A plugin adds others: see `hub_data_formats` in docs/plugins.md.
"""

from collections.abc import Callable
from typing import NamedTuple

from hub.data.formats import converters
from hub.data.formats.converters import BESIDE
from hub.data.formats.examples import Example
from hub.data.formats.messages import kind_of, listed
from hub.data.sources.read import Row
from hub.errors import DataError, did_you_mean
from hub.plugins import registry as plugins
from hub.plugins.offers import DataFormat


class _Format(NamedTuple):
    required: tuple[str, ...]
    optional: tuple[str, ...]
    convert: Callable[[Row, str], Example]

    @property
    def known(self) -> tuple[str, ...]:
        return self.required + self.optional


def detect(row: Row) -> str:
    """The format of a row, from the names of its fields.

    Raises:
        DataError: they are those of no format, or of several.
    """
    known = _all_formats()
    present = set(row.value)
    # Parquet gives every field to every row, null where a row lacks it: fields with a value count first.
    for names in ({name for name in present if row.value[name] is not None}, present):
        found = [name for name, spec in known.items() if names.issuperset(spec.required) and name not in _NOT_DETECTED]
        if len(found) > 1:
            raise DataError(
                f"{row.where}: these fields are of several formats ({', '.join(found)}): {listed(row.value)}. "
                f"Type data.format={found[0]} or another of them"
            )
        if found:
            return found[0]
        if any(isinstance(row.value[name], str) for name in _DOCUMENT_FIELDS if name in names):
            return "document"
    allowed = "; ".join(f"{name} has {listed(spec.required)}" for name, spec in known.items() if name not in _NOT_DETECTED)
    fields = {field for spec in known.values() for field in spec.required}
    near = next((hint for field in sorted(present - fields) if (hint := did_you_mean(field, fields))), "")
    raise DataError(
        f"{row.where}: these fields are of no known format: {listed(row.value)}. Allowed: {allowed}; document has text or "
        f"document.{near or ' For a column with texts type data.text_column=NAME'}"
    )


def convert(row: Row, format: str, text_column: str | None = None) -> Example:
    """Turn a row into what is trained on, and check it.

    Args:
        row: a row.
        format: its format; not `auto`.
        text_column: the field with the text of a document. None: `text` or `document`.

    Raises:
        DataError: the row is of another format, or what it says can't be trained on.
    """
    if text_column is not None:
        return converters.from_document(row, text_column)
    if format == "document":
        return converters.from_document(
            row, next((name for name in _DOCUMENT_FIELDS if row.value.get(name) is not None), _DOCUMENT_FIELDS[0])
        )
    spec = _all_formats()[format]
    if not row.value.keys() >= set(spec.required):
        raise DataError(
            f"{row.where}: this row is not in the format {format}, which has {listed(spec.required)}. "
            f"Its fields: {listed(row.value)}. All rows of a file must be in one format"
        )
    return spec.convert(row, format)


def _all_formats() -> dict[str, _Format]:
    added = {
        name: _Format(item.fields, (), lambda row, name, item=item: _from_plugin(row, item))  # type: ignore[misc]
        for name, item in plugins.registry().data_formats.items()
    }
    return _FORMATS | added


def _from_plugin(row: Row, item: DataFormat) -> Example:
    try:
        value = item.convert(dict(row.value))
    except ValueError as error:
        raise DataError(f"{row.where}: {error}") from None
    if not isinstance(value, dict):
        raise DataError(
            f"{row.where}: the format {item.name} gave {kind_of(value)} instead of an object. That is a fault of its plugin"
        )
    inner = Row(value, row.file, row.line)
    found = convert(inner, detect(inner))
    object.__setattr__(found, "format", item.name)
    return found


_DOCUMENT_FIELDS = ("text", "document")
_NOT_DETECTED = ("chosen",)
_FORMATS = {
    "messages": _Format(("messages",), BESIDE, converters.from_messages),
    "sharegpt": _Format(("conversations",), ("system", *BESIDE), converters.from_sharegpt),
    "alpaca": _Format(("instruction", "output"), ("input", "system", "history"), converters.from_alpaca),
    "prompt_completion": _Format(("prompt", "completion"), ("tools",), converters.from_prompt_completion),
    "tokens": _Format(("input_ids",), ("labels", "attention_mask"), converters.from_tokens),
    "preference": _Format(("chosen", "rejected"), ("prompt", "tools"), converters.from_preference),
    "chosen": _Format(("chosen",), ("prompt", "rejected", "tools"), converters.from_chosen),
}
