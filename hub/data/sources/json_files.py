"""JSON files that are read as a whole: a list of rows, a list under a key, objects over several lines."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from hub.data.json_values import JsonObject, JsonValue
from hub.data.sources.entries import Broken, Entry, as_row, parse_value
from hub.data.sources.files import LONGEST_QUOTE, shorten
from hub.data.sources.text_files import lines, texts
from hub.errors import DataError

KEYS = ("data", "rows", "examples", "instances", "records", "items", "samples", "dataset", "train")
"""Keys under which a file may have its rows as a list."""

_LONG_LINE = 2**20
_SPACE = re.compile(r"[ \t\r\n]*")


def is_whole(file: Path) -> bool:
    """Whether a JSON file must be read as a whole. Otherwise it has a row on each line, whatever its ending is."""
    present = (line for line in lines(file) if line.error or line.text.strip())
    first = next(present, None)
    if first is None or first.error:
        return False
    text = first.text.strip()
    if text.startswith("[") and len(text) > _LONG_LINE:
        return True
    ends_json = ".json" in (ending.lower() for ending in file.suffixes)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        # It goes on in the next line, unless a text is cut in the middle.
        return error.pos >= len(text) or (text.startswith("[") and ends_json)
    except (ValueError, RecursionError):
        return text.startswith("[")
    one_line = next(present, None) is None
    if isinstance(value, list):
        return one_line or (ends_json and any(isinstance(inner, dict) for inner in value))
    return one_line and (_list_key(value) is not None or _is_of_columns(value))


def read_whole(file: Path) -> Iterator[Entry]:
    """The rows of a JSON file that is a list, an object with a list under a key, or objects over several lines.

    Raises:
        DataError: the file is broken between two rows, or has columns in place of rows.
    """
    text = "".join(line for _, line in texts(file))
    start = _skip(text, 0)
    if text.startswith("[", start):
        yield from _list(text, file, start)
        return
    while start < len(text):
        line = 1 + text.count("\n", 0, start)
        value, end = parse_value(text, file, line, start)
        following = _skip(text, end)
        if following == len(text) and (key := _list_key(value)) is not None:
            yield from _list(text, file, _start_of_list(text, file, start, key))
            return
        if _is_of_columns(value):
            raise DataError(
                f"{file}:{line}: this file has columns in place of rows, as DataFrame.to_json writes it. Write it with "
                "to_json(orient='records', lines=True)"
            )
        yield _entry(value, file, line, text[start:end])
        start = following


def _list(text: str, file: Path, start: int) -> Iterator[Entry]:
    """The rows of the list that begins at `start`."""
    line = 1 + text.count("\n", 0, start)
    position = start + 1

    def skip(begin: int) -> int:
        nonlocal line
        end = _skip(text, begin)
        line += text.count("\n", begin, end)
        return end

    position = skip(position)
    while not text.startswith("]", position):
        value, end = parse_value(text, file, line, position)
        yield _entry(value, file, line, text[position:end])
        line += text.count("\n", position, end)
        position = skip(end)
        if text.startswith(",", position):
            position = skip(position + 1)
        elif not text.startswith("]", position):
            rest = text[position : position + 2 * LONGEST_QUOTE]
            content = f"here is: {shorten(rest)}" if rest else "the file ends here: it seems to be cut short"
            raise DataError(f"{file}:{line}: broken JSON: a comma or ] must follow a row; {content}")
    if text[_skip(text, 0)] == "[" and text[position + 1 :].strip():
        skip(position + 1)
        raise DataError(f"{file}:{line}: broken JSON: more text follows the end of the list")


def _entry(value: JsonValue, file: Path, line: int, text: str) -> Entry:
    try:
        return as_row(value, file, line, text)
    except DataError as error:
        return Broken(error, str(file), line)


def _skip(text: str, start: int) -> int:
    match = _SPACE.match(text, start)
    return match.end() if match else start


def _list_key(value: JsonValue) -> str | None:
    """The key under which an object has the rows. None: it is a row itself."""
    if not isinstance(value, dict):
        return None
    lists = [key for key, inner in value.items() if isinstance(inner, list) and inner and isinstance(inner[0], dict)]
    return next((key for key in KEYS if lists == [key]), None)


def _start_of_list(text: str, file: Path, start: int, key: str) -> int:
    """Where the list under a key of an object begins."""
    position = _skip(text, start + 1)
    while True:
        name, end = parse_value(text, file, 1, position)
        position = _skip(text, _skip(text, end) + 1)  # behind the colon
        if name == key:
            return position
        _, end = parse_value(text, file, 1, position)
        position = _skip(text, _skip(text, end) + 1)  # behind the comma


def _is_of_columns(value: JsonValue) -> bool:
    """Whether an object has a column under each key, with the numbers of the rows as keys."""
    if not isinstance(value, dict) or not value:
        return False
    columns: list[JsonObject] = [inner for inner in value.values() if isinstance(inner, dict)]
    return len(columns) == len(value) and all(inner and all(key.isdigit() for key in inner) for inner in columns)
